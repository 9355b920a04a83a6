"""A cohort on disk: clean pixels, an index, and a split of its patients."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from veilray.cohort.indexed import Indexed, gather_place
from veilray.cohort.pixels import PixelSet, open_pixels
from veilray.cohort.records import COHORT_FILE, INDEX_FILE, RELEASE_FILE, CohortRecord, check_file, read_record
from veilray.cohort.table import read_table
from veilray.errors import CohortError
from veilray.images.radiograph import FloatImage


@dataclass(frozen=True, kw_only=True)
class Cohort(Indexed):
    """A cohort, opened: its index in memory, its pixels mapped."""

    record: CohortRecord
    """What `cohort.json` says."""

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
        return cls(path=folder, record=record, table=table, pixels=pixels, files=record.files)

    @property
    def digest(self) -> str:
        """SHA-256 over the index, the pixels and the preprocessing, in hexadecimal."""
        return self.record.digest

    def gather(self, rows: npt.NDArray[np.integer[Any]], out: FloatImage | None = None) -> FloatImage:
        """Images of the given rows: (n, H, W), float32, [0, 1], into `out` where it is given.

        Raises CohortError where the rows are not all of one size, lie outside the cohort, or do not fit `out`.
        """
        return gather_place(self.pixels, self.table, 0, rows, out)
