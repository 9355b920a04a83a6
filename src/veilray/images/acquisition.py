"""What a file says of the patient and the exposure beside the pixels: kept at Site One, released by allow-list only."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from datetime import date

VIEWS = ("PA", "AP", "LL", "RL", "RLD", "LLD", "RLO", "LLO")
"""View positions of PS3.3 C.8.1.1 (0018,5101), in the order in which they are described there after AP and PA."""

OBLIQUE_VIEWS = ("LAO", "RAO", "LPO", "RPO")
"""Obliques that DX objects name by a code (PS3.16 CID 4010)."""

_YEARS_OF_UNIT = {"Y": 1.0, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25}
_AGE = re.compile(r"([0-9]{1,3})([YMWD])")
_SEXES = {"M": "M", "MALE": "M", "F": "F", "FEMALE": "F", "W": "F", "O": "O", "OTHER": "O"}


@dataclass(frozen=True, kw_only=True)
class Acquisition:
    """One exposure of one patient; every field is empty or None where it is unknown."""

    sop_instance_uid: str = ""
    """SOP Instance UID (0008,0018)."""
    study_uid: str = ""
    """Study Instance UID (0020,000D)."""
    issuer: str = ""
    """Issuer of Patient ID (0010,0021)."""
    sex: str = ""
    """M, F or O (0010,0040)."""
    age: float | None = None
    """Age in years at the exposure (0010,1010), or from the birth date where that is missing."""
    spacing: tuple[float, float] | None = None
    """Distance of pixel centres in mm, between rows and between columns."""
    spacing_from: str = ""
    """Where the spacing is from: ImagerPixelSpacing (0018,1164), PixelSpacing (0028,0030), or a table of the user's."""
    burned_in: str = ""
    """Burned In Annotation (0028,0301): YES, NO, or empty, which means unknown."""
    date: str = ""
    """Day of the exposure as YYYY-MM-DD, of the study where that is missing."""


def parse_age(text: str) -> float | None:
    """Years from a DICOM age string (PS3.5 6.2, AS) such as 058Y or 006M, or a plain number; None for anything else."""
    text = text.strip().upper()
    match = _AGE.fullmatch(text)
    if match:
        years = int(match[1]) * _YEARS_OF_UNIT[match[2]]
    else:
        try:
            years = float(text)
        except ValueError:
            return None
    return years if 0 <= years <= 130 else None


def parse_sex(text: str) -> str:
    """M, F or O, from a letter or a word, W as in German for F; empty for anything else."""
    return _SEXES.get(text.strip().upper(), "")


def parse_view(text: str) -> str:
    """A view position in capitals if it is in VIEWS or OBLIQUE_VIEWS, else empty, as for free text."""
    view = text.strip().upper()
    return view if view in VIEWS or view in OBLIQUE_VIEWS else ""


def parse_burned_in(text: str) -> str:
    """YES or NO; empty for anything else."""
    value = text.strip().upper()
    return value if value in ("YES", "NO") else ""


def parse_day(text: str) -> str:
    """YYYY-MM-DD from a day written so or as DICOM does, YYYYMMDD, whatever time follows; empty for anything else."""
    digits = text.strip().replace("-", "").replace(".", "")[:8]
    try:
        return date(int(digits[:4]), int(digits[4:6]), int(digits[6:8])).isoformat() if len(digits) == 8 else ""
    except ValueError:
        return ""


def parse_spacing(text: str) -> tuple[float, float] | None:
    r"""Spacing in mm from `0.143` or `ROW\COLUMN`; None for anything else."""
    try:
        values = [float(part) for part in re.split(r"[\\x, ]+", text.strip())]
    except ValueError:
        return None
    row, column = (values * 2)[:2]
    fits = len(values) <= 2 and all(math.isfinite(value) and 0 < value < 10 for value in values)
    return (row, column) if fits else None


def years_between(birth: str, day: str) -> float | None:
    """Completed years from one YYYY-MM-DD to another; None where one is missing or the second comes first."""
    if not birth or not day:
        return None
    born, then = date.fromisoformat(birth), date.fromisoformat(day)
    years = then.year - born.year - ((then.month, then.day) < (born.month, born.day))
    return float(years) if 0 <= years <= 130 else None
