"""DICOM: each pixel is what the standard says it is, in every syntax."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.dataset import FileMetaDataset
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
)
from tests.images.dicom_files import build, compressed, ramp, read

from veilray.errors import ImageError
from veilray.images.radiograph import restore_stored


@settings(max_examples=60)
@given(
    bits=st.integers(2, 16),
    signed=st.booleans(),
    photometric=st.sampled_from(["MONOCHROME1", "MONOCHROME2"]),
    slope=st.sampled_from([None, 1, 0.5, -2]),
)
def test_the_range_is_declared_and_the_way_back_is_exact(
    bits: int, signed: bool, photometric: str, slope: float | None
) -> None:
    values = ramp(bits, np.int16 if signed else np.uint16)
    rescale = {} if slope is None else {"RescaleSlope": slope, "RescaleIntercept": -1024}
    radiograph = read(build(values, bits=bits, PhotometricInterpretation=photometric, **rescale))
    # The closed form: rescaled values over the rescaled range of stored values, then the polarity of the display.
    factor = 1 if slope is None else slope
    low = -(2 ** (bits - 1)) if signed else 0
    ends = sorted([factor * low, factor * (low + 2**bits - 1)])
    unit = (values * float(factor) - ends[0]) / (ends[1] - ends[0])
    expected = 1 - unit if photometric == "MONOCHROME1" else unit
    np.testing.assert_allclose(radiograph.pixels, expected, rtol=0, atol=1e-7)
    assert radiograph.intensity.slope == factor
    assert np.array_equal(restore_stored(radiograph.pixels, radiograph.intensity), values)


def test_the_range_never_follows_the_image() -> None:
    radiograph = read(build(np.full((4, 4), 512, np.uint16), bits=10))
    np.testing.assert_allclose(radiograph.pixels, 512 / 1023, atol=1e-7)


@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian]
)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16])
def test_every_uncompressed_syntax_gives_the_same_values(syntax: UID, dtype: type) -> None:
    bits = 8 if dtype is np.uint8 else 13
    values = ramp(bits, dtype)
    dataset = build(values, bits=bits)
    if syntax == ExplicitVRBigEndian and dtype is not np.uint8:
        dataset.PixelData = values.astype(values.dtype.newbyteorder(">")).tobytes()
    radiograph = read(dataset, syntax)
    assert np.array_equal(restore_stored(radiograph.pixels, radiograph.intensity), values)


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless])
@pytest.mark.parametrize("dtype", [np.uint16, np.int16])
def test_lossless_syntaxes_give_the_same_values(syntax: UID, dtype: type) -> None:
    values = np.tile(ramp(12, dtype), (8, 8))
    dataset = build(values, bits=12)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.compress(syntax, generate_instance_uid=False)
    radiograph = read(dataset, syntax)
    assert np.array_equal(restore_stored(radiograph.pixels, radiograph.intensity), values)


def jpeg(height: int, width: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (height, width), dtype=np.uint8)).save(stream, "JPEG")
    return stream.getvalue()


def test_jpeg_baseline_is_what_pillow_decodes() -> None:
    frame = jpeg(16, 24)
    with Image.open(io.BytesIO(frame)) as image:
        expected = np.asarray(image)
    radiograph = read(compressed(frame, (16, 24)), JPEGBaseline8Bit)
    assert np.array_equal(np.rint(radiograph.pixels * 255), expected)


@pytest.mark.parametrize("end", [10, 40, -60, -1])
def test_a_compressed_frame_cut_short_is_refused(end: int) -> None:
    with pytest.raises(ImageError, match="cut short"):
        read(compressed(jpeg(16, 16)[:end], (16, 16)), JPEGBaseline8Bit)


def test_a_frame_larger_than_its_header_promises_is_refused_unseen() -> None:
    with pytest.raises(ImageError, match=r"1500 x 2000 pixels.*unlike its header: 16 x 16"):
        read(compressed(jpeg(2000, 1500), (16, 16)), JPEGBaseline8Bit)


def test_compressed_values_beyond_bits_stored_never_wrap() -> None:
    with pytest.raises(ImageError, match="exceed the 7 bits"):
        read(compressed(jpeg(16, 16), (16, 16), bits=7), JPEGBaseline8Bit)


@pytest.mark.parametrize("signed", [False, True])
def test_bits_above_high_bit_have_no_meaning(signed: bool) -> None:
    values = ramp(10, np.int16 if signed else np.uint16)
    garbage = np.random.default_rng(2).integers(0, 64, values.shape).astype(np.uint16) << np.uint16(10)
    dirty = (values.view(np.uint16) & np.uint16(1023)) | garbage
    radiograph = read(build(dirty.view(values.dtype), bits=10))
    assert np.array_equal(restore_stored(radiograph.pixels, radiograph.intensity), values)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian])
def test_padding_is_black_and_counted(photometric: str, syntax: UID) -> None:
    values = ramp(12)
    values[0, :3] = 4095
    values[1, :2] = 4000
    options = {"bits": 12, "PhotometricInterpretation": photometric, "PixelPaddingValue": 4095}
    alone = read(build(values, **options), syntax)
    plain = read(build(values, bits=12, PhotometricInterpretation=photometric), syntax)
    padded = values == 4095
    assert alone.intensity.padding == (4095, 4095)
    assert alone.intensity.padded_pixels == padded.sum() == 4
    assert (alone.pixels[padded] == 0).all()
    assert np.array_equal(alone.pixels[~padded], plain.pixels[~padded])
    ranged = read(build(values, **options, PixelPaddingRangeLimit=4000), syntax)
    assert ranged.intensity.padding == (4000, 4095)
    assert ranged.intensity.padded_pixels == (values >= 4000).sum()


def test_padding_may_lie_outside_the_bits_stored() -> None:
    values = ramp(12)
    values[2, 2:5] = 65535
    radiograph = read(build(values, bits=12, PixelPaddingValue=65535))
    assert radiograph.intensity.padded_pixels == 3
    assert (radiograph.pixels[2, 2:5] == 0).all()


@pytest.mark.parametrize("representation", ["SS", "US"])
def test_signed_padding_is_understood_in_either_representation(representation: str) -> None:
    values = ramp(16, np.int16)
    values[3, 3] = -2000
    dataset = build(values)
    dataset.add_new(0x00280120, representation, -2000 if representation == "SS" else 65536 - 2000)
    radiograph = read(dataset)
    assert radiograph.intensity.padding == (-2000, -2000)
    assert radiograph.intensity.padded_pixels == 1


def test_overlays_are_counted_and_never_drawn() -> None:
    values = ramp(8, np.uint8)
    dataset = build(values)
    for group in (0x6000, 0x6002):
        dataset.add_new((group, 0x0010), "US", 6)
        dataset.add_new((group, 0x0011), "US", 8)
        dataset.add_new((group, 0x3000), "OW", b"\xff" * 6)
    radiograph = read(dataset)
    assert radiograph.intensity.overlays == 2
    assert np.array_equal(radiograph.pixels, read(build(values)).pixels)
