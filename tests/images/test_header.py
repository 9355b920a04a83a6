"""What a header says of patient and exposure: read where it is well formed, empty where it is not, never an error."""

from __future__ import annotations

import numpy as np
import pytest
from pydicom import Dataset
from pydicom.sr.codedict import codes
from tests.images.dicom_files import build, read

from veilray.images.acquisition import (
    Acquisition,
    parse_age,
    parse_burned_in,
    parse_day,
    parse_sex,
    parse_spacing,
    parse_view,
    years_between,
)

_PIXELS = np.zeros((4, 4), np.uint8)


def test_a_header_in_full() -> None:
    said = read(
        build(
            _PIXELS,
            StudyInstanceUID="1.2.3",
            IssuerOfPatientID="H",
            PatientSex="F",
            PatientAge="006M",
            ImagerPixelSpacing=["0.143", "0.15"],
            PixelSpacing=["0.1", "0.1"],
            BurnedInAnnotation="YES",
            AcquisitionDate="20200229",
            StudyDate="20200228",
        )
    ).acquisition
    assert said == Acquisition(
        sop_instance_uid="1.2.826.0.1.3680043.8.498.1",
        study_uid="1.2.3",
        issuer="H",
        sex="F",
        age=0.5,
        spacing=(0.143, 0.15),
        spacing_from="ImagerPixelSpacing",
        burned_in="YES",
        date="2020-02-29",
    )


def test_an_age_from_the_birth_date_and_a_spacing_that_is_left() -> None:
    said = read(build(_PIXELS, PatientBirthDate="19500301", StudyDate="20200229", PixelSpacing=["0.2", "0.2"]))
    assert (said.acquisition.age, said.acquisition.date) == (69.0, "2020-02-29")
    assert (said.acquisition.spacing, said.acquisition.spacing_from) == ((0.2, 0.2), "PixelSpacing")


def test_an_empty_and_a_malformed_header_say_nothing() -> None:
    assert read(build(_PIXELS, SOPInstanceUID=None)).acquisition == Acquisition()
    dataset = build(_PIXELS, SOPInstanceUID=None, PatientSex="X", BurnedInAnnotation="MAYBE")
    dataset.add_new(0x00101010, "LO", "old")
    dataset.add_new(0x00181164, "LO", "wide\\er")
    dataset.add_new(0x00080020, "LO", "yesterday")
    assert read(dataset).acquisition == Acquisition()


@pytest.mark.parametrize(
    ("code", "view"),
    [
        (codes.cid4010.PosteroAnterior, "PA"),
        (codes.cid4010.AnteroPosterior, "AP"),
        (codes.cid4010.LeftLateral, "LL"),
        (codes.cid4010.RightLateral, "RL"),
        (codes.cid4010.LeftAnteriorOblique, "LAO"),
        (codes.cid4010.RightPosteriorOblique, "RPO"),
        (codes.cid4010.CranioCaudal, ""),
    ],
)
def test_a_view_by_its_code(code: tuple[str, str, str], view: str) -> None:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code[:3]
    assert read(build(_PIXELS, ViewPosition=None, ViewCodeSequence=[item])).view == view
    assert read(build(_PIXELS, ViewPosition="AP", ViewCodeSequence=[item])).view == "AP"


@pytest.mark.parametrize(
    ("text", "years"),
    [("058Y", 58), ("006M", 0.5), ("61", 61), ("0.5", 0.5), ("411Y", None), ("", None), ("nan", None), ("-3", None)],
)
def test_ages(text: str, years: float | None) -> None:
    assert parse_age(text) == years


def test_small_parsers() -> None:
    assert [parse_sex(text) for text in ("m", "Female", "w", "O", "?", "")] == ["M", "F", "F", "O", "", ""]
    assert [parse_view(text) for text in ("pa", "LAO", "PA chest", "")] == ["PA", "LAO", "", ""]
    assert [parse_burned_in(text) for text in ("yes", "NO", "unknown")] == ["YES", "NO", ""]
    assert parse_day("20200229") == parse_day("2020-02-29") == parse_day("20200229235959.5") == "2020-02-29"
    assert [parse_day(text) for text in ("20210229", "2020", "", "2020022x")] == ["", "", "", ""]
    assert [parse_spacing(text) for text in ("0.143", "0.1\\0.2", "0.1, 0.2", "0.1x0.2")] == [
        (0.143, 0.143),
        *[(0.1, 0.2)] * 3,
    ]
    assert [parse_spacing(text) for text in ("", "0", "-1", "inf", "1\\2\\3", "wide", "10")] == [None] * 7
    assert years_between("1950-03-01", "2020-03-01") == 70
    assert years_between("2020-03-01", "1950-03-01") is None
    assert years_between("", "2020-03-01") is None
