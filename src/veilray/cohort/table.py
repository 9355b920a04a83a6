"""The index of a cohort or release in memory: some tens of bytes an image."""

from __future__ import annotations

import csv
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from veilray.cohort.columns import IdColumn
from veilray.cohort.pixels import PixelSet
from veilray.cohort.split import SPLITS, SplitCodes
from veilray.errors import CohortError

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where the images of all rows lie in one kind of pixel file."""

    codes: npt.NDArray[np.int32]
    """(N,): which file, by its place in the set of files."""
    rows: npt.NDArray[np.int32]
    """(N,): which image of that file."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """The columns of `index.csv` that are needed again and again, one entry an image."""

    image_ids: IdColumn
    patient_ids: IdColumn
    splits: SplitCodes
    """(N,), int8: codes into SPLITS."""
    places: tuple[Place, ...]
    """One for each kind of pixel file."""
    stds: npt.NDArray[np.float32] | None
    """(N,): standard deviation of the noise of each image, where the index has it."""


def read_table(path: Path, kinds: Sequence[tuple[str, str, PixelSet]]) -> Table:
    """Read an index, row by row, and check that every row points at an image.

    `kinds` names, for each kind of pixel file, the column of the file's name, the column of the row in it, and the
    files. Raises CohortError where the index is damaged.
    """
    try:
        table = _read(path, kinds)
    except KeyError as error:
        raise CohortError(f"{path}: {error.args[0]!r} is missing or unknown; make the folder again") from None
    except (ValueError, OverflowError, OSError, csv.Error) as error:
        raise CohortError(f"{path} is damaged ({error}); make the folder again") from None
    for place, (_, _, pixels) in zip(table.places, kinds, strict=True):
        counts = np.array([len(file.levels) for file in pixels.files], dtype=np.int64)
        if ((place.rows < 0) | (place.rows >= counts[place.codes])).any():
            raise CohortError(f"{path} points at images that its pixel files do not hold; make the folder again")
    # Python's hash has 64 bits here: two different ids of 100,000 share one with a chance of 3e-10.
    if len(np.unique(np.fromiter(map(hash, table.image_ids), np.int64, len(table.image_ids)))) != len(table.image_ids):
        raise CohortError(f"{path} names an image twice; make the folder again")
    return table


def iterate_index(path: Path) -> Iterator[dict[str, str]]:
    """Every row of an index, one after another, by column; ValueError for a row of the wrong length."""
    with path.open(newline="", encoding="utf-8") as stream:
        reader = csv.reader(stream)
        header = next(reader, [])
        for row in reader:
            yield dict(zip(header, row, strict=True))


def _read(path: Path, kinds: Sequence[tuple[str, str, PixelSet]]) -> Table:
    codes_of = [{name: code for code, name in enumerate(pixels.names)} for _, _, pixels in kinds]
    split_of: dict[str, int] = {name: code for code, name in enumerate(SPLITS)}
    splits, stds = array("b"), array("f")
    places = [(array("i"), array("i")) for _ in kinds]
    image_ids, patient_ids = IdColumn(), IdColumn()
    for row in iterate_index(path):
        image_ids.append(row["image_id"])
        patient_ids.append(row["patient_id"])
        splits.append(split_of[row["split"]])
        for (file_column, row_column, _), codes, (files, rows) in zip(kinds, codes_of, places, strict=True):
            files.append(codes[row[file_column]])
            rows.append(int(row[row_column]))
        if "std" in row:
            stds.append(float(row["std"]))
    if not len(image_ids):
        raise CohortError(f"{path} lists no image; make the folder again")
    return Table(
        image_ids=image_ids,
        patient_ids=patient_ids,
        splits=_array(splits, np.int8),
        places=tuple(Place(codes=_array(files, np.int32), rows=_array(rows, np.int32)) for files, rows in places),
        stds=_array(stds, np.float32) if stds else None,
    )


def _array(values: array[Any], dtype: type[np.generic]) -> npt.NDArray[Any]:
    return np.frombuffer(values, dtype=dtype)
