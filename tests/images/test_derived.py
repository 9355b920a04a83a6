"""Derived objects: what they say of their making, what they keep to the bit, and what an independent validator says."""

from __future__ import annotations

import io
import shutil
import subprocess
import warnings
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pydicom")

from pydicom import Dataset, dcmread
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid
from tests.images.clinical_files import add_overlay, cr, dx, table
from tests.images.dicom_files import build, read, save

from veilray.errors import ImageError
from veilray.images.derived import TITLE, Provenance, _set_compression, derived_object, encode_dicom, is_derived
from veilray.images.dicom import parse_dicom
from veilray.images.read import read_radiograph_bytes

KEY = b"k" * 32
PROVENANCE = Provenance(
    veilray="0.1.0",
    weights="ab" * 32,
    settings='{"mean": 0.1}',
    description="Noise removed.",
    when=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
)


def _values(bits: int = 12, seed: int = 0) -> np.ndarray:
    dtype = np.uint8 if bits <= 8 else np.uint16
    return np.random.default_rng(seed).integers(0, 2**bits, (23, 31)).astype(dtype)


def _derive(original: Dataset, pixels: np.ndarray | None = None, *, key: bytes = KEY) -> Dataset:
    """Through the bytes of a file both ways, as in use; the denoised pixels are the original's unless given."""
    data = save(original)
    if pixels is None:
        pixels = read_radiograph_bytes(data, source="a.dcm").pixels
    derived = derived_object(parse_dicom(data), pixels, provenance=PROVENANCE, key=key)
    return dcmread(io.BytesIO(encode_dicom(derived)))


MAPS = {
    "plain": {},
    "signed": {"values": (_values(12).astype(np.int16) - 2048)},
    "monochrome1": {"PhotometricInterpretation": "MONOCHROME1"},
    "inverse": {"PhotometricInterpretation": "MONOCHROME1", "PresentationLUTShape": "INVERSE"},
    "rescale": {"RescaleSlope": 2.5, "RescaleIntercept": -100},
    "falling": {"RescaleSlope": -1, "RescaleIntercept": 4095},
    "eight": {"values": _values(8), "bits": 8},
}


@pytest.mark.parametrize("name", MAPS)
def test_the_identity_gives_back_every_stored_value(name: str) -> None:
    elements = {"values": _values(), "bits": 12, **MAPS[name]}
    original = cr(**elements)
    derived = _derive(original)
    np.testing.assert_array_equal(derived.pixel_array, original.pixel_array)
    for keyword in ("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"):
        assert derived[keyword].value == original[keyword].value
    assert derived.PhotometricInterpretation == original.PhotometricInterpretation
    assert (derived.SmallestImagePixelValue, derived.LargestImagePixelValue) == (
        original.pixel_array.min(),
        original.pixel_array.max(),
    )


def test_brighter_pixels_look_brighter_in_every_map() -> None:
    for elements in MAPS.values():
        original = cr(**{"values": _values(), "bits": 12, **elements})
        pixels = read(original).pixels
        brighter = _derive(original, np.clip(pixels + np.float32(0.2), 0, 1))
        assert read(brighter).pixels.mean() > pixels.mean() + 0.1


def test_padding_is_untouched_and_nothing_else_becomes_padding() -> None:
    values = _values(12)
    values[values < 40] = 40
    values[:3] = 0  # padding
    for limit in (None, 30):
        original = cr(values, bits=12, PixelPaddingValue=0, PixelPaddingRangeLimit=limit, SmallestImagePixelValue=9)
        darkest = _derive(original, np.zeros(values.shape, np.float32))
        assert (darkest.pixel_array[:3] == 0).all()
        assert (darkest.pixel_array[3:] == (limit or 0) + 1).all()
        assert darkest.SmallestImagePixelValue == (limit or 0) + 1
        assert darkest.PixelPaddingValue == 0
        np.testing.assert_array_equal(_derive(original).pixel_array, values)


def test_padding_above_high_bit_keeps_its_cells() -> None:
    values = _values(12)
    values[:, :2] = 0xFFFF
    derived = _derive(cr(values, bits=12, PixelPaddingValue=0xFFFF))
    np.testing.assert_array_equal(np.frombuffer(derived.PixelData, "<u2").reshape(values.shape), values)


def test_bits_above_high_bit_that_are_no_padding_are_cleared() -> None:
    values = _values(12)
    derived = _derive(cr(values | np.uint16(0xF000), bits=12))
    np.testing.assert_array_equal(np.frombuffer(derived.PixelData, "<u2").reshape(values.shape), values)


def test_identity_comes_from_the_source_and_uids_from_a_keyed_hash() -> None:
    original = dx(_values(), bits=12, StudyDescription="Thorax")
    one, again, other_key = _derive(original), _derive(original), _derive(original, key=b"x" * 32)
    for keyword in ("PatientName", "PatientID", "StudyInstanceUID", "AccessionNumber", "StudyDate", "InstanceNumber"):
        assert one[keyword].value == original[keyword].value
    assert encode_dicom(one) == encode_dicom(again)
    uids = {uid for each in (original, one, other_key) for uid in (each.SOPInstanceUID, each.SeriesInstanceUID)}
    assert len(uids) == 6
    for uid in (one.SOPInstanceUID, one.SeriesInstanceUID):
        assert UID(uid).is_valid
        number = int(uid.removeprefix("2.25."))
        assert number.bit_length() <= 128
        assert (number >> 76 & 0xF, number >> 62 & 0x3) == (8, 2)  # version and variant of RFC 9562
    settings = derived_object(
        original, read(original).pixels, provenance=replace(PROVENANCE, settings="{}"), key=KEY
    ).SOPInstanceUID
    weights = derived_object(
        original, read(original).pixels, provenance=replace(PROVENANCE, weights="cd" * 32), key=KEY
    ).SOPInstanceUID
    assert len({one.SOPInstanceUID, settings, weights}) == 3


def test_two_images_of_a_series_stay_in_one_series() -> None:
    first, second = cr(_values()), cr(_values(seed=1), SOPInstanceUID=generate_uid())
    one, two = _derive(first), _derive(second)
    assert one.SeriesInstanceUID == two.SeriesInstanceUID != first.SeriesInstanceUID
    assert one.SOPInstanceUID != two.SOPInstanceUID


def test_it_says_what_it_is() -> None:
    original = dx(_values(), bits=12, ImageType=["ORIGINAL", "PRIMARY", "SINGLE PLANE"], SeriesDescription="x" * 60)
    derived = _derive(original)
    assert list(derived.ImageType) == ["DERIVED", "SECONDARY", "SINGLE PLANE"]
    assert derived.SeriesDescription.startswith(TITLE)
    assert len(derived.SeriesDescription) <= 64
    (source,) = derived.SourceImageSequence
    assert source.ReferencedSOPInstanceUID == original.SOPInstanceUID
    assert source.PurposeOfReferenceCodeSequence[0].CodeValue == "121322"
    assert derived.DerivationCodeSequence[-1].CodeValue == "113087"
    assert "not for diagnosis" in derived.DerivationDescription
    (equipment,) = derived.ContributingEquipmentSequence
    assert equipment.PurposeOfReferenceCodeSequence[0].CodeValue == "109102"
    assert list(equipment.SoftwareVersions) == ["veilray 0.1.0", "ab" * 32]
    assert derived.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    assert is_derived(derived)
    assert not is_derived(original)


def test_what_an_earlier_derivation_said_is_kept() -> None:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "113040", "DCM", "Lossy Compression"
    original = cr(_values(), ImageType=["DERIVED", "PRIMARY"], DerivationDescription="10:1")
    original.DerivationCodeSequence = [code]
    derived = _derive(original)
    assert [item.CodeValue for item in derived.DerivationCodeSequence] == ["113040", "113087"]
    assert "10:1" in derived.DerivationDescription
    assert not is_derived(original)


def test_windows_tables_and_overlays_stay_and_private_elements_go() -> None:
    voi = table(np.arange(4096) * 16, first=0, bits=16)
    original = dx(_values(), bits=12, WindowCenter=[2000, 1000], WindowWidth=[4000, 500], VOILUTSequence=[voi])
    original.WindowCenterWidthExplanation = ["NORMAL", "HARDER"]
    add_overlay(original)
    block = original.private_block(0x0009, "MAKER", create=True)
    block.add_new(0x01, "LO", "secret")
    nested = original.ViewCodeSequence[0].private_block(0x0011, "MAKER", create=True)
    nested.add_new(0x01, "LO", "secret")
    original.IconImageSequence = [build(_values(8))]
    derived = _derive(original)
    for keyword in ("WindowCenter", "WindowWidth", "WindowCenterWidthExplanation", "VOILUTSequence", "RescaleType"):
        assert derived[keyword].value == original[keyword].value
    assert derived[0x6000, 0x3000].value == original[0x6000, 0x3000].value
    assert (0x6000, 0x1301) not in derived
    assert (0x6000, 0x1302) not in derived
    assert "IconImageSequence" not in derived
    assert b"secret" not in encode_dicom(derived)
    assert not [element for element in derived.iterall() if element.tag.is_private]


def test_overlays_in_unused_bits_go() -> None:
    original = cr(_values() | np.uint16(0x1000), bits=12)
    original.add_new((0x6000, 0x0010), "US", 23)
    original.add_new((0x6000, 0x0102), "US", 12)
    derived = _derive(original)
    assert not [tag for tag in derived.keys() if tag.group == 0x6000]  # noqa: SIM118


def test_lossy_stays_lossy() -> None:
    elements = {"LossyImageCompressionRatio": 10, "LossyImageCompressionMethod": "ISO_15444_1"}
    derived = _derive(cr(_values(), LossyImageCompression="01", **elements))
    assert derived.LossyImageCompression == "01"
    assert (derived.LossyImageCompressionRatio, derived.LossyImageCompressionMethod) == (10, "ISO_15444_1")
    assert "LossyImageCompression" not in _derive(cr(_values()))


@pytest.mark.parametrize(
    ("syntax", "said", "method", "ratio"),
    [
        ("1.2.840.10008.1.2.4.51", {}, "ISO_10918_1", 4),
        ("1.2.840.10008.1.2.4.51", {"LossyImageCompression": "01"}, "ISO_10918_1", 4),
        ("1.2.840.10008.1.2.4.91", {"LossyImageCompression": "01", "LossyImageCompressionRatio": 7}, "ISO_15444_1", 7),
        ("1.2.840.10008.1.2.4.91", {"LossyImageCompression": "01", "LossyImageCompressionMethod": "X"}, "X", 4),
        ("1.2.840.10008.1.2.4.91", {}, None, None),
        ("1.2.840.10008.1.2.1", {"LossyImageCompression": "01"}, None, None),
    ],
)
def test_of_lossy_compression_what_the_header_left_out_is_filled_in(
    syntax: str, said: dict[str, object], method: str | None, ratio: float | None
) -> None:
    original, derived = cr(_values(), **said), Dataset()
    for keyword, value in said.items():
        setattr(derived, keyword, value)
    original.file_meta.TransferSyntaxUID = syntax
    original.PixelData = bytes(len(original.PixelData) // 4)
    _set_compression(derived, original)
    assert derived.get("LossyImageCompressionMethod") == method
    found = derived.get("LossyImageCompressionRatio")
    assert found is None if ratio is None else float(found) == pytest.approx(ratio, rel=0.01)
    assert derived.get("LossyImageCompression") == ("01" if said or method else None)


def test_for_processing_other_sizes_and_nameless_objects_are_refused() -> None:
    with pytest.raises(ImageError, match="For Processing"):
        read(dx(_values(), bits=12, for_processing=True))
    original = cr(_values())
    with pytest.raises(ImageError, match="native size"):
        derived_object(original, np.zeros((8, 8), np.float32), provenance=PROVENANCE, key=KEY)
    del original.SeriesInstanceUID
    with pytest.raises(ImageError, match="SeriesInstanceUID"):
        derived_object(original, np.zeros((23, 31), np.float32), provenance=PROVENANCE, key=KEY)


@pytest.mark.slow
def test_damaged_originals_give_a_reason_or_an_object_that_can_be_read() -> None:
    data = save(dx(_values(), bits=12, VOILUTSequence=[table(np.arange(16), first=0, bits=8)]))
    chance = np.random.default_rng(1)
    pixels = read_radiograph_bytes(data, source="a.dcm").pixels
    made = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(250):
            damaged = bytearray(data)
            for place in chance.integers(132, len(data) - 1400, chance.integers(1, 4)):
                damaged[place] = chance.integers(256)
            try:
                original = parse_dicom(bytes(damaged))
            except Exception:  # as every caller expects of a file that cannot be parsed
                continue
            try:
                encoded = encode_dicom(derived_object(original, pixels, provenance=PROVENANCE, key=KEY))
            except ImageError:
                continue
            assert is_derived(dcmread(io.BytesIO(encoded)))
            made += 1
    assert 25 < made < 250


def _errors(path: Path) -> set[str]:
    """What dicom3tools' validator calls an error; it writes to standard error."""
    done = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, timeout=60, errors="replace")
    return {line for line in (done.stdout + done.stderr).splitlines() if line.startswith("Error")}


@pytest.fixture(scope="module", autouse=False)
def _validator() -> None:
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy of dicom3tools is not installed")


@pytest.mark.usefixtures("_validator")
@pytest.mark.parametrize("kind", ["cr", "dx", "dx inverse"])
def test_a_validator_finds_no_error_in_objects_built_from_clean_ones(kind: str, tmp_path: Path) -> None:
    values = np.maximum(_values(), 1)
    values[0] = 0
    elements: dict[str, object] = {"bits": 12, "PixelPaddingValue": 0, "WindowCenter": 100, "WindowWidth": 200}
    if kind == "dx inverse":
        elements["PhotometricInterpretation"] = "MONOCHROME1"
        elements["VOILUTSequence"] = [table(np.arange(4096), first=0, bits=12)]
    original = (cr if kind == "cr" else dx)(values, **elements)
    add_overlay(original)
    (tmp_path / "original.dcm").write_bytes(save(original))
    (tmp_path / "derived.dcm").write_bytes(encode_dicom(_derive(original)))
    assert _errors(tmp_path / "original.dcm") == set()  # or this test would hide what it looks for
    assert _errors(tmp_path / "derived.dcm") == set()


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.usefixtures("_validator")
def test_a_validator_finds_no_new_error_in_real_objects(real_data: Path, tmp_path: Path) -> None:
    tried = 0
    for path in sorted((real_data / "dicom").glob("*.dcm")):
        data = path.read_bytes()
        try:
            radiograph = read_radiograph_bytes(data, source=path.name)
        except ImageError:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            original = parse_dicom(data)
            derived = derived_object(original, radiograph.pixels, provenance=PROVENANCE, key=KEY)
            (tmp_path / path.name).write_bytes(encode_dicom(derived))
            again = read_radiograph_bytes((tmp_path / path.name).read_bytes(), source=path.name)
        np.testing.assert_array_equal(again.pixels, radiograph.pixels)
        assert _errors(tmp_path / path.name) - _errors(path) == set(), path.name
        tried += 1
    assert tried >= 8
