"""CSV files that the user gives to an import: patients, and a split."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import cast

from veilray.cohort.split import SPLITS, Split
from veilray.errors import DataError, UsageError


def read_patients(path: Path) -> dict[str, str]:
    """Patient by image id, from a CSV file with the columns image_id and patient_id; others are passed over.

    Raises UsageError where the file is missing, DataError where it is damaged or contradicts itself.
    """
    return _read_pairs(path, "patient_id")


def read_split(path: Path) -> dict[str, Split]:
    """Set by image id, from a CSV file with the columns image_id and split; others are passed over.

    Raises UsageError where the file is missing, DataError where it is damaged or contradicts itself.
    """
    pairs = _read_pairs(path, "split")
    for image, name in pairs.items():
        if name not in SPLITS:
            raise DataError(f"{path}: image {image} is in {name!r}; write train, validation or test")
    return cast("dict[str, Split]", pairs)


def _read_pairs(path: Path, column: str) -> dict[str, str]:
    pairs: dict[str, str] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream, strict=True)
            found = reader.fieldnames or []
            missing = [name for name in ("image_id", column) if name not in found]
            if missing:
                raise DataError(f"{path} has no column {missing[0]}; it has {', '.join(found) or 'none'}")
            for row in reader:
                image, value = (row["image_id"] or "").strip(), (row[column] or "").strip()
                if not image or not value:
                    raise DataError(f"{path}, line {reader.line_num}: image_id or {column} is empty")
                if pairs.setdefault(image, value) != value:
                    raise DataError(f"{path}, line {reader.line_num}: {image} is listed twice, with different {column}")
    except (FileNotFoundError, IsADirectoryError):
        raise UsageError(f"{path} is not a file") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not a CSV file in UTF-8 ({error})") from None
    if not pairs:
        raise DataError(f"{path} lists no image")
    return pairs
