"""CSV files that the user gives to an import: patients, and a split."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, cast

from veilray.cohort.split import SPLITS, Split
from veilray.errors import DataError, UsageError
from veilray.images.acquisition import (
    Acquisition,
    parse_age,
    parse_burned_in,
    parse_day,
    parse_sex,
    parse_spacing,
)
from veilray.images.radiograph import Radiograph


@dataclass(frozen=True, kw_only=True)
class Listed:
    """What the user's table says of one image; it goes before what the file itself says."""

    patient_id: str
    view: str = ""
    acquisition: Acquisition = field(default_factory=Acquisition)

    def over(self, radiograph: Radiograph) -> Radiograph:
        """The radiograph with what is listed in place of what its file says; what is empty here changes nothing."""
        empty = Acquisition()
        listed = {
            one.name: getattr(self.acquisition, one.name)
            for one in fields(Acquisition)
            if one.name != "issuer" and getattr(self.acquisition, one.name) != getattr(empty, one.name)
        }
        issuer = self.acquisition.issuer  # of the listed id, whatever issued the one in the file
        return replace(
            radiograph,
            patient_id=f"{self.patient_id}^^^{issuer}" if issuer else self.patient_id,
            view=self.view or radiograph.view,
            acquisition=replace(radiograph.acquisition, **listed, issuer=issuer),
        )


@dataclass(frozen=True, kw_only=True)
class PatientList:
    """The user's table of images."""

    rows: dict[str, Listed]
    """By image id."""
    unreadable: dict[str, int]
    """How many values of a column could not be understood, and count as unknown."""


def read_patients(path: Path) -> PatientList:
    """Patient by image id, from a CSV file with the columns image_id and patient_id, and what else it says of them.

    Optional columns: issuer, view (or view_position), sex, age, spacing (mm, one number or ROW x COLUMN), burned_in,
    date, study_uid; others are passed over. Raises UsageError where the file is missing, DataError where it is damaged
    or contradicts itself.
    """
    rows: dict[str, Listed] = {}
    unreadable: Counter[str] = Counter()
    for line, row in read_rows(path, "patient_id"):
        listed = _listed(row, unreadable)
        if rows.setdefault(row["image_id"], listed) != listed:
            raise DataError(f"{path}, line {line}: an image is listed twice, with different values")
    return PatientList(rows=rows, unreadable=dict(unreadable))


def _listed(row: dict[str, str], unreadable: Counter[str]) -> Listed:
    def read(column: str, parse: Callable[[str], Any]) -> Any:
        text = row.get(column, "")
        value = parse(text)
        unreadable.update([column] if text and value in ("", None) else [])
        return value

    spacing = read("spacing", parse_spacing)
    return Listed(
        patient_id=row["patient_id"],
        view=row.get("view") or row.get("view_position", ""),
        acquisition=Acquisition(
            issuer=row.get("issuer", ""),
            study_uid=row.get("study_uid", ""),
            sex=read("sex", parse_sex),
            age=read("age", parse_age),
            spacing=spacing,
            spacing_from="" if spacing is None else "table",
            burned_in=read("burned_in", parse_burned_in),
            date=read("date", parse_day),
        ),
    )


def read_split(path: Path) -> dict[str, Split]:
    """Set by image id, from a CSV file with the columns image_id and split; others are passed over.

    Raises UsageError where the file is missing, DataError where it is damaged or contradicts itself.
    """
    pairs: dict[str, str] = {}
    for line, row in read_rows(path, "split"):
        image, value = row["image_id"], row["split"]
        if pairs.setdefault(image, value) != value:
            raise DataError(f"{path}, line {line}: an image is listed twice, with different split")
        if value not in SPLITS:
            raise DataError(f"{path}, line {line}: {value!r} is no set; write train, validation or test")
    return cast("dict[str, Split]", pairs)


def read_image_ids(path: Path) -> set[str]:
    """Image ids from a CSV file with the column image_id; UsageError or DataError as the other lists."""
    return {row["image_id"] for _, row in read_rows(path)}


def read_rows(path: Path, *columns: str) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and values by column of a CSV file; image_id and `columns` must be there and not be empty.

    Raises UsageError where the file is missing, DataError where it is damaged or lists nothing.
    """
    some = False
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream, strict=True)
            found = reader.fieldnames or []
            missing = [name for name in ("image_id", *columns) if name not in found]
            if missing:
                raise DataError(f"{path} has no column {missing[0]}; it has {', '.join(found) or 'none'}")
            for row in reader:
                values = {name: (value or "").strip() for name, value in row.items() if isinstance(name, str)}
                if not all(values[name] for name in ("image_id", *columns)):
                    wanted = " or ".join(("image_id", *columns))
                    raise DataError(f"{path}, line {reader.line_num}: {wanted} is empty")
                some = True
                yield reader.line_num, values
    except (FileNotFoundError, IsADirectoryError):
        raise UsageError(f"{path} is not a file") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not a CSV file in UTF-8 ({error})") from None
    if not some:
        raise DataError(f"{path} lists no image")
