"""The real DICOM files: each is read like pydicom reads it, or refused for the reason that it should be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread

from veilray.errors import ImageError
from veilray.images.radiograph import restore_stored
from veilray.images.read import read_radiograph

RADIOGRAPHS = {
    "xrv_cr_chest_pa_mono2_8bit_jpegbaseline": 8,
    "xrv_cr_chest_pa_mono1_8bit_jpegbaseline": 8,
    "nhsx_dx_chest_nih_mono2_8bit_implicit": 8,
    "wg04_RG1_J2KI": 15,
    "wg04_RG1_JLSN": 15,
    "wg04_RG2_J2KR": 10,
    "wg04_RG2_JLSL": 10,
    "wg04_RG3_RLE": 10,
    "wg04_RG3_JPLL": 10,
    "wg04_RG3_J2KR": 10,
    "wg04_RG3_UNC": 10,
}
OTHERS = {
    "wg04_RG2_JPLY": "JPEG Extended .* 12 bits, cannot be decoded",
    "pydicom_chrJapMulti": "no pixel data",
    "pydicom_CT_small": "modality is CT",
    "pydicom_MR_small_implicit": "modality is MR",
    "pydicom_MR_small_bigendian": "modality is MR",
    "pydicom_MR_small_RLE": "modality is MR",
    "pydicom_JPEG2000": "modality is NM",
    "pydicom_image_dfl": "modality is OT",
    "pydicom_MR_truncated": "modality is MR",
}


def test_every_real_file_is_spoken_for(real_data: Path) -> None:
    assert {path.stem for path in (real_data / "dicom").glob("*.dcm")} == {*RADIOGRAPHS, *OTHERS}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "bits"), RADIOGRAPHS.items())
def test_real_radiographs_equal_pydicoms_decoding(real_data: Path, name: str, bits: int) -> None:
    path = real_data / "dicom" / f"{name}.dcm"
    radiograph = read_radiograph(path)
    dataset = dcmread(path)
    assert radiograph.bit_depth == bits == dataset.BitsStored
    expected = dataset.pixel_array / (2**bits - 1)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        expected = 1 - expected
    np.testing.assert_allclose(radiograph.pixels, expected, rtol=0, atol=1e-6)
    assert np.array_equal(restore_stored(radiograph.pixels, radiograph.intensity), dataset.pixel_array)


@pytest.mark.parametrize(("name", "reason"), OTHERS.items())
def test_real_files_that_are_no_radiograph_say_why(real_data: Path, name: str, reason: str) -> None:
    with pytest.raises(ImageError, match=reason):
        read_radiograph(real_data / "dicom" / f"{name}.dcm")


def test_real_files_of_other_modalities_decode_when_asked_for(real_data: Path) -> None:
    everything = {"CT", "MR", "NM", "OT"}
    for name in ("CT_small", "MR_small_implicit", "MR_small_bigendian", "MR_small_RLE", "JPEG2000", "image_dfl"):
        path = real_data / "dicom" / f"pydicom_{name}.dcm"
        radiograph = read_radiograph(path, modalities=everything)
        stored = restore_stored(radiograph.pixels, radiograph.intensity)
        assert np.array_equal(stored, dcmread(path).pixel_array), name
    with pytest.raises(ImageError, match="cut short"):
        read_radiograph(real_data / "dicom" / "pydicom_MR_truncated.dcm", modalities=everything)


def test_a_changed_photometric_interpretation_gives_the_negative(real_data: Path) -> None:
    positive = read_radiograph(real_data / "dicom" / "xrv_cr_chest_pa_mono2_8bit_jpegbaseline.dcm")
    negative = read_radiograph(real_data / "dicom" / "xrv_cr_chest_pa_mono1_8bit_jpegbaseline.dcm")
    np.testing.assert_allclose(positive.pixels + negative.pixels, 1.0, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_three_lossless_codings_of_one_radiograph_agree(real_data: Path) -> None:
    first, *others = (
        read_radiograph(real_data / "dicom" / f"wg04_RG3_{kind}.dcm").pixels for kind in ("UNC", "RLE", "JPLL", "J2KR")
    )
    assert all(np.array_equal(first, other) for other in others)


def test_the_dicom_copy_of_an_nih_radiograph_equals_its_png(real_data: Path) -> None:
    dicom = read_radiograph(real_data / "dicom" / "nhsx_dx_chest_nih_mono2_8bit_implicit.dcm")
    png = read_radiograph(real_data / "nih1024" / "00000002_000.png")
    assert np.array_equal(dicom.pixels, png.pixels)
