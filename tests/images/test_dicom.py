"""DICOM: which files are accepted, which are refused, and what is taken over from their headers."""

from __future__ import annotations

import struct
import sys
import tracemalloc
import zlib
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from tests.images.dicom_files import DX, DX_FOR_PROCESSING, INSTANCE, SECONDARY, build, ramp, read, save

from veilray.errors import ImageError
from veilray.images import dicom
from veilray.images.radiograph import restore_stored
from veilray.images.read import read_radiograph_bytes


def test_identity_and_header_are_taken_over() -> None:
    radiograph = read(build(ramp(12), bits=12))
    assert (radiograph.image_id, radiograph.patient_id) == (INSTANCE, "P7")
    assert (radiograph.modality, radiograph.view, radiograph.format) == ("CR", "PA", "dicom")
    assert radiograph.bit_depth == 12
    assert radiograph.pixels.dtype == np.float32


@pytest.mark.parametrize(
    ("patient", "issuer", "expected"),
    [("P7", "Ward", "P7^^^Ward"), (" P7 ", None, "P7"), ("", None, None), (None, "Ward", None)],
)
def test_patients_are_named_with_their_issuer(patient: str | None, issuer: str | None, expected: str | None) -> None:
    assert read(build(ramp(8), PatientID=patient, IssuerOfPatientID=issuer)).patient_id == expected


def test_without_an_instance_uid_the_file_gives_the_id() -> None:
    assert read(build(ramp(8), SOPInstanceUID=None)).image_id == "a"


def table(entries: list[int]) -> Dataset:
    item = Dataset()
    item.add_new(0x00283002, "US", [len(entries), 0, 16])
    item.add_new(0x00283006, "US", entries)
    return item


def test_voi_transformations_are_recorded_and_never_applied() -> None:
    values = ramp(12)
    windowed = build(
        values,
        bits=12,
        WindowCenter=[2048, 600],
        WindowWidth=[4096, 300],
        WindowCenterWidthExplanation=["WIDE", "NARROW"],
        VOILUTFunction="SIGMOID",
        VOILUTSequence=Sequence([table([0, 5, 9, 65535])]),
    )
    radiograph = read(windowed)
    assert radiograph.intensity.voi.startswith(
        "window 2048/4096 SIGMOID (WIDE); window 600/300 SIGMOID (NARROW); table 4,0,16 sha256 "
    )
    assert np.array_equal(radiograph.pixels, read(build(values, bits=12)).pixels)
    windowed.VOILUTSequence = Sequence([table([0, 5, 9, 65534])])
    assert read(windowed).intensity.voi != radiograph.intensity.voi


@pytest.mark.parametrize(
    ("photometric", "shape"), [("MONOCHROME1", "INVERSE"), ("MONOCHROME2", "IDENTITY"), ("MONOCHROME1", None)]
)
def test_consistent_presentation_shapes_invert_once(photometric: str, shape: str | None) -> None:
    values = ramp(8, np.uint8)
    radiograph = read(build(values, PhotometricInterpretation=photometric, PresentationLUTShape=shape))
    expected = values / 255
    np.testing.assert_allclose(
        radiograph.pixels, 1 - expected if photometric == "MONOCHROME1" else expected, rtol=0, atol=1e-7
    )


ACCEPTED = [
    {},
    {"SOPClassUID": DX, "Modality": "DX", "PresentationIntentType": "FOR PRESENTATION"},
    {"SOPClassUID": SECONDARY, "Modality": "RG"},
    {"SOPClassUID": SECONDARY, "Modality": "CR", "NumberOfFrames": 1},
    {"SOPClassUID": None, "Modality": "DX"},
]
REFUSED = [
    ({"Modality": "CT"}, "modality is CT; accepted are CR, DX, RG"),
    ({"Modality": "MR"}, "modality is MR"),
    ({"Modality": "OT", "SOPClassUID": SECONDARY}, "modality is OT"),
    ({"Modality": None}, "modality is not given"),
    ({"SOPClassUID": DX_FOR_PROCESSING, "Modality": "DX"}, "For Processing"),
    ({"SOPClassUID": DX, "Modality": "DX", "PresentationIntentType": "FOR PROCESSING"}, "For Processing"),
    ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.12.1"}, "SOP class is X-Ray Angiographic"),
    ({"NumberOfFrames": 2}, "2 frames"),
    ({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0}, "RGB with 3 samples"),
    ({"PhotometricInterpretation": "PALETTE COLOR"}, "PALETTE COLOR"),
    ({"PhotometricInterpretation": None}, "photometric interpretation is not given"),
    ({"PhotometricInterpretation": "MONOCHROME2", "PresentationLUTShape": "INVERSE"}, "which one holds is unknown"),
    ({"PhotometricInterpretation": "MONOCHROME1", "PresentationLUTShape": "IDENTITY"}, "which one holds is unknown"),
    ({"PresentationLUTShape": "LIN OD"}, "LIN OD"),
    ({"ModalityLUTSequence": Sequence([table([1, 2])])}, "Modality LUT"),
    ({"PresentationLUTSequence": Sequence([table([1, 2])])}, "Presentation LUT Sequence"),
    ({"RescaleSlope": 0, "RescaleIntercept": 5}, "no way back"),
    ({"HighBit": 7, "BitsStored": 6}, "High Bit is 7"),
    ({"BitsStored": 17}, "17 of 16 bits"),
    ({"BitsAllocated": 32, "BitsStored": 32, "HighBit": 31}, "32 of 32 bits"),
    ({"PixelData": b""}, "no pixel data"),
    ({"PixelData": bytes(50)}, "cut short"),
    ({"Rows": 65535, "Columns": 65535}, "65535 x 65535 pixels"),
    ({"Rows": 0}, "8 x 0 pixels"),
    ({"Rows": None}, "damaged"),
]


@pytest.mark.parametrize("elements", ACCEPTED, ids=str)
def test_projection_radiographs_are_accepted(elements: dict[str, Any]) -> None:
    assert read(build(ramp(16), **elements)).pixels.shape == (6, 8)


@pytest.mark.parametrize(("elements", "reason"), REFUSED, ids=[reason for _, reason in REFUSED])
def test_everything_else_is_refused_with_the_reason(elements: dict[str, Any], reason: str) -> None:
    dataset = build(ramp(16), **elements)
    if "PixelData" in elements:
        dataset["PixelData"].VR = "OW"
    with pytest.raises(ImageError, match=reason):
        read(dataset)


def test_the_caller_may_ask_for_other_modalities() -> None:
    scan = build(ramp(16, np.int16), Modality="CT", SOPClassUID="1.2.840.10008.5.1.4.1.1.2")
    assert read(scan, modalities={"CT"}).modality == "CT"
    raw = build(ramp(16), Modality="MG", SOPClassUID="1.2.840.10008.5.1.4.1.1.1.2.1")
    with pytest.raises(ImageError, match="For Processing"):
        read(raw, modalities={"MG"})


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian])
def test_a_data_set_without_the_file_header_is_recognised(syntax: UID) -> None:
    values = ramp(12)
    data = save(build(values, bits=12), syntax, preamble=False)
    assert data[128:132] != b"DICM"
    radiograph = read_radiograph_bytes(data, source="a")
    assert np.array_equal(restore_stored(radiograph.pixels, radiograph.intensity), values)


def test_a_truncated_file_is_refused_wherever_it_ends() -> None:
    data = save(build(ramp(16)))
    for end in range(0, len(data) - 1, 3):
        with pytest.raises(ImageError):
            read_radiograph_bytes(data[:end], source="a")


def test_a_deflated_bomb_is_refused_before_it_fills_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    limit = 1 << 20
    monkeypatch.setattr("veilray.images.limits.MAX_FILE_BYTES", limit)
    monkeypatch.setattr(dicom, "MAX_FILE_BYTES", limit)
    plain = save(build(ramp(16)), DeflatedExplicitVRLittleEndian)
    start = 144 + struct.unpack_from("<I", plain, 140)[0]
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    block = bytes(limit)
    bomb = b"".join(packer.compress(block) for _ in range(100)) + packer.flush()
    assert len(bomb) < limit
    tracemalloc.start()
    try:
        with pytest.raises(ImageError, match="larger than 1 MiB"):
            read_radiograph_bytes(plain[:start] + bomb, source="a")
        assert tracemalloc.get_traced_memory()[1] < 10 * limit
    finally:
        tracemalloc.stop()


def test_without_the_extra_the_message_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    data = save(build(ramp(16)))
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(ImageError, match="its extra 'dicom'"):
        read_radiograph_bytes(data, source="a")
