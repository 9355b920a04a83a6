"""What a DICOM header says of patient and exposure, as plain values without control characters."""

from __future__ import annotations

from typing import TYPE_CHECKING

from veilray.images.acquisition import (
    Acquisition,
    parse_age,
    parse_burned_in,
    parse_day,
    parse_sex,
    parse_spacing,
    years_between,
)

if TYPE_CHECKING:
    from pydicom import Dataset

# PS3.16 CID 4010, by SNOMED CT code and by the SNOMED-RT code that older objects carry.
_VIEW_CODES = {
    "272479007": "PA",
    "399348003": "AP",
    "399173006": "LL",
    "399198007": "RL",
    "399135007": "LAO",
    "399356000": "RAO",
    "399006002": "LPO",
    "399038007": "RPO",
    "R-10214": "PA",
    "R-40888": "PA",
    "R-10206": "AP",
    "R-10236": "LL",
    "R-10232": "RL",
    "R-10220": "LAO",
    "R-40985": "RAO",
    "R-10212": "LPO",
    "R-10210": "RPO",
}


def printable(text: str) -> str:
    """`text` without control characters: headers are written by others and end up in tables and on terminals."""
    return "".join(character for character in text if character.isprintable())


def text(dataset: Dataset, keyword: str) -> str:
    """An element as text; empty where it is absent."""
    return printable(str(dataset.get(keyword) or "")).strip()


def view_of(dataset: Dataset) -> str:
    """View Position (0018,5101) as it stands, or that of the View Code Sequence (0054,0220); empty where neither is."""
    view = text(dataset, "ViewPosition")
    if view:
        return view
    codes = [text(item, "CodeValue") for item in dataset.get("ViewCodeSequence") or []]
    return _VIEW_CODES.get(codes[0], "") if codes else ""


def acquisition_of(dataset: Dataset) -> Acquisition:
    """Patient and exposure; what is missing or malformed stays empty. Nothing is raised: none of it is needed."""
    days = [_day(dataset, name) for name in ("AcquisitionDate", "AcquisitionDateTime", "ContentDate", "StudyDate")]
    day = next((day for day in days if day), "")
    age = parse_age(_lenient(dataset, "PatientAge"))
    spacing, spacing_from = _spacing(dataset)
    return Acquisition(
        sop_instance_uid=_lenient(dataset, "SOPInstanceUID"),
        study_uid=_lenient(dataset, "StudyInstanceUID"),
        issuer=_lenient(dataset, "IssuerOfPatientID"),
        sex=parse_sex(_lenient(dataset, "PatientSex")),
        age=years_between(_day(dataset, "PatientBirthDate"), day) if age is None else age,
        spacing=spacing,
        spacing_from=spacing_from,
        burned_in=parse_burned_in(_lenient(dataset, "BurnedInAnnotation")),
        date=day,
    )


def _day(dataset: Dataset, keyword: str) -> str:
    return parse_day(_lenient(dataset, keyword))


def _spacing(dataset: Dataset) -> tuple[tuple[float, float] | None, str]:
    # At the detector's front plane first: it is what was measured. Pixel Spacing may be corrected for a magnification
    # that was guessed (PS3.3 10.7.1.3).
    for keyword in ("ImagerPixelSpacing", "PixelSpacing"):
        spacing = parse_spacing(_lenient(dataset, keyword).strip("[]"))
        if spacing is not None:
            return spacing, keyword
    return None, ""


def _lenient(dataset: Dataset, keyword: str) -> str:
    try:
        return text(dataset, keyword)
    except Exception:  # pydicom converts a value when it is asked for, and raises anything on a malformed one
        return ""
