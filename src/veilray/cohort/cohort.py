"""A cohort on disk: clean pixels, an index, and a split of its patients."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from veilray.cohort.columns import IdColumn
from veilray.cohort.pixels import PixelSet, open_pixels
from veilray.cohort.records import COHORT_FILE, INDEX_FILE, RELEASE_FILE, CohortRecord, check_file, read_record
from veilray.cohort.split import SPLITS, Split, SplitCodes
from veilray.cohort.table import Rows, Table, read_table
from veilray.errors import CohortError
from veilray.images.radiograph import FloatImage


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """A cohort, opened: its index in memory, its pixels mapped.

    Rows count the images as the index lists them. The memory of a process that holds a cohort grows by some tens of
    bytes an image; the pixels are pages of the files, shared by every process that maps them.
    """

    path: Path
    """The folder."""
    record: CohortRecord
    """What `cohort.json` says."""
    table: Table
    pixels: PixelSet

    @classmethod
    def open(cls, path: str | Path) -> Cohort:
        """Open the cohort in a folder. Checks everything but the pixels' digests, which `verify` reads.

        Raises CohortError where the folder is no cohort, or is damaged or altered.
        """
        folder = Path(path)
        if not (folder / COHORT_FILE).is_file():
            hint = "it is a release" if (folder / RELEASE_FILE).is_file() else "make one with: veilray import"
            raise CohortError(f"{folder} is not a cohort; {hint}")
        record = read_record(folder, COHORT_FILE, CohortRecord)
        if INDEX_FILE not in record.files:
            raise CohortError(f"{folder / COHORT_FILE} names no {INDEX_FILE}; import the radiographs again")
        check_file(folder, INDEX_FILE, record.files[INDEX_FILE])
        files = {name: file for name, file in record.files.items() if name != INDEX_FILE}
        pixels = PixelSet({name: open_pixels(folder, name, n_bytes=file.size) for name, file in files.items()})
        table = read_table(folder / INDEX_FILE, [("pixels", "row", pixels)])
        return cls(path=folder, record=record, table=table, pixels=pixels)

    def __len__(self) -> int:
        return len(self.table.image_ids)

    @property
    def digest(self) -> str:
        """SHA-256 over the index, the pixels and the preprocessing, in hexadecimal."""
        return self.record.digest

    @property
    def image_ids(self) -> IdColumn:
        """Names of the images, by row."""
        return self.table.image_ids

    @property
    def patient_ids(self) -> IdColumn:
        """Patients, by row."""
        return self.table.patient_ids

    @property
    def split_codes(self) -> SplitCodes:
        """(N,), int8: the set of each row, as its place in SPLITS."""
        return self.table.splits

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Heights and widths that occur, in ascending order."""
        return sorted({file.size for file in self.pixels.files})

    def image_id(self, row: int) -> str:
        """Name of the image in a row."""
        return self.table.image_ids[row]

    def patient_id(self, row: int) -> str:
        """Patient of the image in a row."""
        return self.table.patient_ids[row]

    def rows(self, split: Split) -> Rows:
        """Rows of a set, (n,), int64, ascending."""
        return rows_of(self.table.splits, split)

    def groups(self, rows: npt.NDArray[np.integer[Any]]) -> list[Rows]:
        """Rows split into groups of one size each, each in the order given; sizes ascending."""
        return groups_of(self.pixels, self.table.places[0].codes, rows)

    def dtype(self, row: int) -> np.dtype[Any]:
        """uint8 or uint16: the depth at which a row's pixels are kept."""
        return self.pixels.files[int(self.table.places[0].codes[row])].levels.dtype

    def gather(self, rows: npt.NDArray[np.integer[Any]], out: FloatImage | None = None) -> FloatImage:
        """Images of the given rows: (n, H, W), float32, [0, 1], into `out` where it is given.

        Raises CohortError where the rows are not all of one size, lie outside the cohort, or do not fit `out`.
        """
        return gather_place(self.pixels, self.table, 0, rows, out)

    def verify(self) -> None:
        """Read every file through and compare its SHA-256; CohortError names the one that was altered."""
        for name, file in self.record.files.items():
            check_file(self.path, name, file)


def rows_of(codes: SplitCodes, split: Split) -> Rows:
    """Rows of a set, (n,), int64, ascending."""
    return np.flatnonzero(codes == SPLITS.index(split))


def groups_of(pixels: PixelSet, codes: npt.NDArray[np.int32], rows: npt.NDArray[np.integer[Any]]) -> list[Rows]:
    """Rows split into groups of one size each, each in the order given; `codes` are the file codes of all rows."""
    sizes = [file.size for file in pixels.files]
    rank = {size: place for place, size in enumerate(sorted(set(sizes)))}
    ranks = np.array([rank[size] for size in sizes])[codes[rows]]
    return [np.asarray(rows, dtype=np.int64)[ranks == place] for place in np.unique(ranks)]


def gather_place(
    pixels: PixelSet, table: Table, kind: int, rows: npt.NDArray[np.integer[Any]], out: FloatImage | None
) -> FloatImage:
    """Images of the given rows from one kind of pixel file; CohortError for rows outside the table."""
    rows = np.asarray(rows)
    if rows.ndim != 1 or rows.dtype.kind not in "iu" or len(rows) == 0:
        raise CohortError("rows must be a one-dimensional array of whole numbers, with at least one")
    if rows.min() < 0 or rows.max() >= len(table.image_ids):
        raise CohortError(f"rows must lie between 0 and {len(table.image_ids) - 1}")
    place = table.places[kind]
    return pixels.gather(place.codes[rows], place.rows[rows], out)
