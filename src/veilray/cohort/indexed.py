"""What a cohort and a release have in common: an index in memory beside mapped pixels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from veilray.cohort.columns import IdColumn
from veilray.cohort.pixels import PixelSet
from veilray.cohort.records import FileRecord, check_file
from veilray.cohort.split import SPLITS, Split, SplitCodes
from veilray.cohort.table import Rows, Table
from veilray.errors import CohortError
from veilray.images.radiograph import FloatImage


# A base class and no part of its own, since whoever trains asks both kinds of folder for the same things by name.
@dataclass(frozen=True, kw_only=True)
class Indexed:
    """Images on disk with an index. Rows count the images as the index lists them.

    The memory of a process that holds it grows by some tens of bytes an image; the pixels are pages of the files,
    shared by every process that maps them.
    """

    path: Path
    """The folder."""
    table: Table
    pixels: PixelSet
    """Pixels of every image: clean ones in a cohort, noisy ones in a release."""
    files: Mapping[str, FileRecord]
    """Every file of the folder as its record has it."""

    def __len__(self) -> int:
        return len(self.table.image_ids)

    @property
    def image_ids(self) -> IdColumn:
        """Names of the images by row; pseudonyms in a release."""
        return self.table.image_ids

    @property
    def patient_ids(self) -> IdColumn:
        """Patients by row; pseudonyms in a release."""
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
        return np.flatnonzero(self.table.splits == SPLITS.index(split))

    def groups(self, rows: npt.NDArray[np.integer[Any]]) -> list[Rows]:
        """Rows split into groups of one size each, each in the order given; sizes ascending."""
        sizes = [file.size for file in self.pixels.files]
        rank = {size: place for place, size in enumerate(sorted(set(sizes)))}
        ranks = np.array([rank[size] for size in sizes])[self.table.places[0].codes[rows]]
        return [np.asarray(rows, dtype=np.int64)[ranks == place] for place in np.unique(ranks)]

    def size(self, row: int) -> tuple[int, int]:
        """Height and width of the image in a row."""
        return self.pixels.files[int(self.table.places[0].codes[row])].size

    def dtype(self, row: int) -> np.dtype[Any]:
        """uint8 or uint16: the depth at which a row's pixels are kept."""
        return self.pixels.files[int(self.table.places[0].codes[row])].levels.dtype

    def verify(self) -> None:
        """Read every file through and compare its SHA-256; CohortError names the one that was altered."""
        for name, file in self.files.items():
            check_file(self.path, name, file)


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
