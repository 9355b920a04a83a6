"""PNG and JPEG: exact values where a file states them, and a reason where it cannot be read."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from veilray.errors import ImageError
from veilray.images.radiograph import Radiograph, restore_stored
from veilray.images.read import read_radiograph, read_radiograph_bytes

Chunks = list[tuple[bytes, bytes]]


def build_png(
    width: int, height: int, depth: int, colour: int, rows: bytes, *, extra: Chunks | None = None, interlace: int = 0
) -> bytes:
    """A PNG from its raw rows (filter byte included), chunk by chunk."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace)),
        *(extra or []),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def read(data: bytes, source: str = "a.png") -> Radiograph:
    return read_radiograph_bytes(data, source=source)


def stored(data: bytes) -> np.ndarray:
    radiograph = read(data)
    return restore_stored(radiograph.pixels, radiograph.intensity)


def noise(*shape: int, dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(5).integers(0, np.iinfo(dtype).max + 1, shape, dtype=dtype)


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_grey_of_every_depth_is_stored_over_full_range(depth: int) -> None:
    values = np.random.default_rng(depth).integers(0, 2**depth, (5, 16))
    bits = (values[..., None] >> np.arange(depth)[::-1]) & 1
    rows = b"".join(b"\0" + np.packbits(row.reshape(-1)).tobytes() for row in bits)
    radiograph = read(build_png(16, 5, depth, 0, rows))
    assert radiograph.bit_depth == depth
    assert (radiograph.intensity.low, radiograph.intensity.high) == (0, 2**depth - 1)
    np.testing.assert_allclose(radiograph.pixels, values / (2**depth - 1), rtol=0, atol=1e-7)
    assert np.array_equal(restore_stored(radiograph.pixels, radiograph.intensity), values)


def test_grey_with_opaque_alpha_keeps_all_16_bits() -> None:
    values = noise(4, 6, dtype=np.uint16)
    both = np.stack([values, np.full_like(values, 65535)], -1).astype(">u2")
    data = build_png(6, 4, 16, 4, b"".join(b"\0" + row.tobytes() for row in both))
    assert read(data).bit_depth == 16
    assert np.array_equal(stored(data), values)
    both[2, 3, 1] = 65534
    with pytest.raises(ImageError, match="transparent"):
        read(build_png(6, 4, 16, 4, b"".join(b"\0" + row.tobytes() for row in both)))


@pytest.mark.parametrize("interlaced", [False, True])
def test_adam7_is_read_like_plain_rows(interlaced: bool) -> None:
    values = noise(9, 11)
    if interlaced:
        passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
        parts = [values[y::dy, x::dx] for x, y, dx, dy in passes]
        rows = b"".join(b"\0" + row.tobytes() for part in parts if part.size for row in part)
    else:
        rows = b"".join(b"\0" + row.tobytes() for row in values)
    assert np.array_equal(stored(build_png(11, 9, 8, 0, rows, interlace=int(interlaced))), values)


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_equal_channels_stay_exactly_what_they_are(mode: str) -> None:
    grey = Image.fromarray(noise(13, 17))
    assert np.array_equal(stored(encode(grey.convert(mode))), np.asarray(grey))


def test_colour_becomes_luma_as_pillow_computes_it() -> None:
    colour = Image.fromarray(noise(13, 17, 3))
    expected = np.asarray(colour.convert("L"))
    assert np.array_equal(stored(encode(colour)), expected)
    opaque = colour.copy()
    opaque.putalpha(255)
    assert np.array_equal(stored(encode(opaque)), expected)


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_a_palette_is_looked_up(depth: int) -> None:
    count = 2**depth
    palette = noise(count, 3)
    values = np.random.default_rng(depth).integers(0, count, (5, 8))
    bits = (values[..., None] >> np.arange(depth)[::-1]) & 1
    rows = b"".join(b"\0" + np.packbits(row.reshape(-1)).tobytes() for row in bits)
    data = build_png(8, 5, depth, 3, rows, extra=[(b"PLTE", palette.tobytes())])
    assert read(data).bit_depth == 8
    assert np.array_equal(stored(data), np.asarray(Image.fromarray(palette[values]).convert("L")))


ONE_ROW = {0: b"\0\x07\x08", 2: b"\0\1\2\3\4\5\6", 3: b"\0\0\1"}
PALETTE = (b"PLTE", bytes(range(6)))


@pytest.mark.parametrize(
    ("colour", "hidden", "opaque"),
    [(0, b"\0\x07", b"\0\x09"), (2, b"\0\1\0\2\0\3", b"\0\1\0\2\0\4"), (3, b"\xff\x10", b"\xff\xff")],
)
def test_trns_matters_only_where_pixels_use_it(colour: int, hidden: bytes, opaque: bytes) -> None:
    palette = [PALETTE] if colour == 3 else []
    plain = build_png(2, 1, 8, colour, ONE_ROW[colour], extra=palette)
    fine = build_png(2, 1, 8, colour, ONE_ROW[colour], extra=[*palette, (b"tRNS", opaque)])
    assert np.array_equal(stored(fine), stored(plain))
    with pytest.raises(ImageError, match="transparent"):
        read(build_png(2, 1, 8, colour, ONE_ROW[colour], extra=[*palette, (b"tRNS", hidden)]))


def test_transparent_pixels_are_refused() -> None:
    image = Image.fromarray(noise(5, 5, 3))
    image.putalpha(255)
    image.putpixel((2, 3), (9, 9, 9, 254))
    with pytest.raises(ImageError, match="transparent"):
        read(encode(image))


@pytest.mark.parametrize(("colour", "samples"), [(2, 3), (6, 4)])
def test_16_bit_colour_keeps_all_16_bits(colour: int, samples: int) -> None:
    def png(values: np.ndarray) -> bytes:
        # By turns the filters None and Sub, which is modulo 256 on the bytes of whole pixels (9.2).
        raw = values.astype(">u2").reshape(len(values), -1).view(np.uint8)
        shifted = np.pad(raw, ((0, 0), (2 * samples, 0)))[:, : raw.shape[1]]
        rows = [b"\0" + row.tobytes() if i % 2 else b"\1" + (row - shifted[i]).tobytes() for i, row in enumerate(raw)]
        return build_png(values.shape[1], len(values), 16, colour, b"".join(rows))

    grey = noise(4, 6, dtype=np.uint16)
    values = np.repeat(grey[..., None], samples, axis=-1)
    values[..., 3:] = 65535
    assert read(png(values)).bit_depth == 16
    assert np.array_equal(stored(png(values)), grey)
    values[..., :3] = noise(4, 6, 3, dtype=np.uint16)
    expected = values[..., :3].astype(np.float64) @ (0.299, 0.587, 0.114)
    np.testing.assert_allclose(stored(png(values)), expected, rtol=0, atol=1)
    if samples == 4:
        values[2, 3, 3] = 65534
        with pytest.raises(ImageError, match="transparent"):
            read(png(values))


def test_trns_of_16_bit_colour_matters_only_where_pixels_have_all_its_bits() -> None:
    row = b"\0" + bytes([1, 2, 1, 2, 1, 2, 1, 3, 1, 3, 1, 3])
    fine = build_png(2, 1, 16, 2, row, extra=[(b"tRNS", bytes([1, 4] * 3))])
    assert stored(fine).tolist() == [[0x102, 0x103]]
    with pytest.raises(ImageError, match="transparent"):
        read(build_png(2, 1, 16, 2, row, extra=[(b"tRNS", bytes([1, 3] * 3))]))


def test_animations_are_refused() -> None:
    frames = [Image.fromarray(noise(5, 5)), Image.fromarray(255 - noise(5, 5))]
    with pytest.raises(ImageError, match="animated"):
        read(encode(frames[0], save_all=True, append_images=frames[1:]))
    with pytest.raises(ImageError, match="several pictures"):
        read(encode(frames[0], "MPO", save_all=True, append_images=frames[1:]))


def test_rows_that_the_pixel_data_lack_are_noticed() -> None:
    rows = b"".join(b"\0" + bytes(range(8)) for _ in range(4))
    assert read(build_png(8, 4, 8, 0, rows)).pixels.shape == (4, 8)
    with pytest.raises(ImageError, match="truncated"):
        read(build_png(8, 5, 8, 0, rows))


def test_one_flipped_bit_of_pixel_data_is_noticed() -> None:
    data = bytearray(encode(Image.fromarray(noise(16, 16))))
    data[len(data) // 2] ^= 1
    with pytest.raises(ImageError, match="checksum"):
        read(bytes(data))


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_truncated_files_are_refused_wherever_they_end(kind: str) -> None:
    data = encode(Image.fromarray(noise(24, 24)), kind)
    for end in range(8, len(data) - 8):
        with pytest.raises(ImageError):
            read(data[:end])


@pytest.mark.slow
def test_a_decompression_bomb_is_refused_by_its_header(monkeypatch: pytest.MonkeyPatch) -> None:
    def decoded(*arguments: object) -> None:
        raise AssertionError("pixels are decoded")

    monkeypatch.setattr(zlib, "decompressobj", decoded)
    monkeypatch.setattr(ImageFile.ImageFile, "load", decoded)
    with pytest.raises(ImageError, match="20000 x 20000 pixels"):
        read(build_png(20000, 20000, 1, 0, bytes(2501) * 20000))
    jpeg = bytearray(encode(Image.fromarray(noise(8, 8)), "JPEG"))
    place = jpeg.index(b"\xff\xc0") + 5
    for side, reason in ((11000, "11000 x 11000 pixels"), (60000, "more pixels than Pillow")):
        jpeg[place : place + 4] = struct.pack(">HH", side, side)
        with pytest.raises(ImageError, match=reason):
            read(bytes(jpeg))


def test_an_image_between_pillows_limits_warns_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert read(encode(Image.fromarray(noise(12, 12)))).pixels.shape == (12, 12)
    assert read(encode(Image.fromarray(noise(12, 12)), "JPEG")).pixels.shape == (12, 12)


def test_jpeg_equals_pillows_decoding() -> None:
    data = encode(Image.fromarray(noise(20, 30)), "JPEG", quality=80)
    radiograph = read(data, "b.png")
    assert (radiograph.format, radiograph.bit_depth) == ("jpeg", 8)
    with Image.open(io.BytesIO(data)) as image:
        assert np.array_equal(np.rint(radiograph.pixels * 255), np.asarray(image))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    ramp = np.add.outer(np.arange(16) * 8, np.arange(24) * 4).astype(np.uint8)
    # What a camera stores so that a viewer which turns it as EXIF says shows the ramp (EXIF 2.32, table 4).
    turned = {
        1: ramp,
        2: ramp[:, ::-1],
        3: ramp[::-1, ::-1],
        4: ramp[::-1],
        5: ramp.T,
        6: np.rot90(ramp),
        7: ramp[::-1, ::-1].T,
        8: np.rot90(ramp, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(Image.fromarray(np.ascontiguousarray(turned)), "JPEG", quality=95, exif=exif)
    shown = read(data).pixels * 255
    assert shown.shape == ramp.shape
    assert np.abs(shown - ramp).max() < 6


def test_cmyk_is_refused() -> None:
    with pytest.raises(ImageError, match="CMYK"):
        read(encode(Image.fromarray(noise(8, 8)).convert("CMYK"), "JPEG"))


@pytest.mark.parametrize(
    ("name", "patient"),
    [
        ("00000061_012.png", "00000061"),
        ("00000061_012.jpg", "00000061"),
        ("00000061_0123.png", None),
        ("0000061_012.png", None),
        ("024e7871_fff13f3a.png", None),
        ("x00000061_012.png", None),
        ("photo.png", None),
    ],
)
def test_patients_come_from_nih_names_alone(name: str, patient: str | None) -> None:
    radiograph = read(encode(Image.fromarray(noise(4, 4))), f"some/folder/{name}")
    assert radiograph.patient_id == patient
    assert radiograph.image_id == name.rpartition(".")[0]


def test_ids_of_archive_members_come_from_the_member() -> None:
    data = encode(Image.fromarray(noise(4, 4)))
    for source in ("in/a.tar.gz:00000061_012.png", "a.ZIP:deep/00000061_012.png", "a.tgz:./00000061_012.png"):
        radiograph = read(data, source)
        assert (radiograph.image_id, radiograph.patient_id, radiograph.source) == ("00000061_012", "00000061", source)


def test_content_decides_and_other_files_are_named_as_such(tmp_path: Path) -> None:
    path = tmp_path / "really_a_jpeg.png"
    path.write_bytes(encode(Image.fromarray(noise(8, 8)), "JPEG"))
    assert read_radiograph(path).format == "jpeg"
    for data in (
        b"hello",
        b"GIF89a" + bytes(50),
        b"\x08\x00\x05\x00",
        b"II*\0" + bytes(200),
        b"PK\x03\x04" + bytes(200),
    ):
        with pytest.raises(ImageError, match="not a PNG, JPEG or DICOM file"):
            read(data)
    with pytest.raises(ImageError, match="empty"):
        read(b"")


@pytest.mark.slow
def test_real_originals_open_and_are_what_pillow_sees(real_data: Path) -> None:
    paths = sorted((real_data / "nih1024").glob("*.png"))
    modes = set()
    for path in paths:
        radiograph = read_radiograph(path)
        modes.add(radiograph.intensity.photometric)
        assert radiograph.patient_id == path.stem[:8]
        with Image.open(path) as image:
            expected = np.asarray(image.convert("L"))
        assert np.array_equal(restore_stored(radiograph.pixels, radiograph.intensity), expected)
    assert modes == {"L", "RGBA"}
    hospital = next((real_data / "hannover256").glob("*.png"))
    assert read_radiograph(hospital).patient_id is None
