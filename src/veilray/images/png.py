"""PNG as stored values: every chunk checked before anything is decoded."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from veilray.errors import ImageError
from veilray.images.limits import check_size
from veilray.images.raster import Raster, colourfulness, luma

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

# Colour types of PNG (third edition, 11.2.1) and their samples a pixel.
_GREY, _RGB, _PALETTE, _GREY_ALPHA, _RGBA = 0, 2, 3, 4, 6
_SAMPLES = {_GREY: 1, _RGB: 3, _PALETTE: 1, _GREY_ALPHA: 2, _RGBA: 4}
_DEPTHS = {_GREY: (1, 2, 4, 8, 16), _RGB: (8, 16), _PALETTE: (1, 2, 4, 8), _GREY_ALPHA: (8, 16), _RGBA: (8, 16)}
# Adam7's passes: first column, first row, step between columns, step between rows.
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


@dataclass(frozen=True, kw_only=True)
class _Png:
    width: int
    height: int
    depth: int
    colour: int
    interlace: int
    palette: npt.NDArray[np.uint8]
    transparency: bytes
    compressed: bytes


def decode_png(data: bytes) -> Raster:
    """Decode a PNG of any kind; raises ImageError with the reason.

    Alpha and tRNS are dropped where every pixel is opaque and refused otherwise, since what lies behind a transparent
    pixel is unknown. Every chunk's CRC and the amount of compressed data are checked: Pillow fills what is missing
    with zeros.
    """
    png = _parse_png(data)
    if _inflated_bytes(png) < _filtered_bytes(png):
        raise ImageError("the PNG is truncated: its pixel data end early")
    samples, mode = _png_samples(png)
    if png.colour in (_GREY, _GREY_ALPHA):
        return Raster(stored=_grey(png, samples), bit_depth=png.depth, mode="LA" if png.colour == _GREY_ALPHA else mode)
    colours = _colours(png, samples)
    depth = 16 if png.depth == 16 else 8
    return Raster(stored=luma(colours), bit_depth=depth, mode=mode, colour=colourfulness(colours))


def _grey(png: _Png, samples: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Stored grey values, (H, W); refused where some are transparent."""
    if png.colour == _GREY_ALPHA:
        _refuse_transparent(samples[..., 1] != np.iinfo(samples.dtype).max)
        return np.ascontiguousarray(samples[..., 0])
    # Pillow spreads 1, 2 and 4 bits over 8; divided back, the values are the stored ones.
    stored = samples if png.depth >= 8 else samples // np.uint8(255 // (2**png.depth - 1))
    if png.transparency:
        _refuse_transparent(stored == np.frombuffer(png.transparency, ">u2"))
    return stored


def _colours(png: _Png, samples: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Colours of 8 or 16 bits, (H, W, 3); refused where some are transparent."""
    if png.colour == _RGBA:
        _refuse_transparent(samples[..., 3] != np.iinfo(samples.dtype).max)
        return samples[..., :3]
    if png.colour == _RGB:
        if png.transparency:
            _refuse_transparent((samples == np.frombuffer(png.transparency, ">u2")).all(axis=-1))
        return samples
    if samples.max() >= len(png.palette):
        raise ImageError("the PNG is damaged: it uses colours that its palette lacks")
    alpha = np.full(256, 255, np.uint8)  # a tRNS shorter than the palette leaves the rest opaque (11.3.1.1)
    alpha[: len(png.transparency)] = np.frombuffer(png.transparency, np.uint8)
    _refuse_transparent(alpha[samples] != 255)
    colours: npt.NDArray[Any] = png.palette[samples]
    return colours


def _parse_png(data: bytes) -> _Png:
    header = palette = transparency = b""
    compressed: list[bytes] = []
    for kind, body in _chunks(data):
        match kind:
            case b"IHDR":
                header = body
            case b"PLTE":
                palette = body
            case b"tRNS":
                transparency = body
            case b"IDAT":
                compressed.append(body)
            case b"acTL":
                raise ImageError("it is an animated PNG; save the radiograph as a single image")
    if len(header) != 13:
        raise ImageError("the PNG is damaged: its header is missing")
    width, height, depth, colour, method, filtering, interlace = struct.unpack(">IIBBBBB", header)
    if (
        depth not in _DEPTHS.get(colour, ())
        or method
        or filtering
        or interlace > 1
        or len(palette) % 3
        or (transparency and len(transparency) != {_GREY: 2, _RGB: 6}.get(colour, min(len(transparency), 256)))
    ):
        raise ImageError("the PNG is damaged: its header contradicts the format")
    check_size(width, height)
    return _Png(
        width=width,
        height=height,
        depth=depth,
        colour=colour,
        interlace=interlace,
        palette=np.frombuffer(palette, np.uint8).reshape(-1, 3),
        transparency=transparency,
        compressed=b"".join(compressed),
    )


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Each chunk up to IEND, its CRC checked (11.1)."""
    place = len(PNG_SIGNATURE)
    kind = b""
    while kind != b"IEND":
        if place + 12 > len(data):
            raise ImageError("the PNG is truncated")
        (length,) = struct.unpack_from(">I", data, place)
        kind, body = data[place + 4 : place + 8], data[place + 8 : place + 8 + length]
        if place + 12 + length > len(data):
            raise ImageError("the PNG is truncated")
        (crc,) = struct.unpack_from(">I", data, place + 8 + length)
        if zlib.crc32(body, zlib.crc32(kind)) != crc:
            raise ImageError("the PNG is damaged: a checksum does not match")
        yield kind, body
        place += 12 + length


def _filtered_bytes(png: _Png) -> int:
    """Bytes of pixel data before compression: one filter byte a row, rows of each pass padded to whole bytes (7.2)."""
    bits = png.depth * _SAMPLES[png.colour]
    total = 0
    for x, y, dx, dy in _ADAM7 if png.interlace else ((0, 0, 1, 1),):
        width, height = -((x - png.width) // dx), -((y - png.height) // dy)
        total += height * (1 + (width * bits + 7) // 8) if width > 0 and height > 0 else 0
    return total


def _inflated_bytes(png: _Png) -> int:
    """How much pixel data there is, counted block by block and no further than needed."""
    stream, rest, total, wanted = zlib.decompressobj(), png.compressed, 0, _filtered_bytes(png)
    while total < wanted and not stream.eof:
        block = stream.decompress(rest, 1 << 20)
        if not block and not stream.unconsumed_tail:
            break
        total, rest = total + len(block), stream.unconsumed_tail
    return total


def _png_samples(png: _Png) -> tuple[npt.NDArray[Any], str]:
    """Samples, (H, W) or (H, W, C), decoded by Pillow from the chunks that matter, and Pillow's mode."""
    depth, colour = png.depth, png.colour
    if (depth, colour) == (16, _GREY_ALPHA):
        # Pillow would keep 8 of the 16 bits. Filters work on bytes, so the same data read as 8-bit RGBA, which has as
        # many bytes a pixel, gives both bytes of both samples.
        depth, colour = 8, _RGBA
    header = struct.pack(">IIBBBBB", png.width, png.height, depth, colour, 0, 0, png.interlace)
    parts = [(b"IHDR", header), (b"PLTE", png.palette.tobytes()), (b"IDAT", png.compressed), (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(part)) + kind + part + struct.pack(">I", zlib.crc32(part, zlib.crc32(kind)))
        for kind, part in parts
        if part or kind == b"IEND"
    )
    samples, mode = _decoded(PNG_SIGNATURE + body)
    if (depth, colour) in ((16, _RGB), (16, _RGBA)):
        # Of 16-bit colours Pillow keeps the upper 8 bits; told that they come low byte first, it keeps the lower ones.
        lower, _ = _decoded(PNG_SIGNATURE + body, raw_mode=f"{mode};16L")
        samples = samples.astype(np.uint16) << 8 | lower
    if (png.depth, png.colour) == (16, _GREY_ALPHA):
        samples = np.ascontiguousarray(samples).view(">u2")
    if mode == "1":
        samples = samples * np.uint8(255)
    return samples.astype(np.uint16 if png.depth == 16 else np.uint8), mode


def _decoded(data: bytes, *, raw_mode: str | None = None) -> tuple[npt.NDArray[Any], str]:
    """Samples of a PNG and Pillow's mode; `raw_mode`: how Pillow is to take its bytes, in place of as the file says."""
    with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        if raw_mode is not None:
            image.tile = [part._replace(args=raw_mode) for part in image.tile]
        return np.asarray(image), image.mode


def _refuse_transparent(transparent: npt.NDArray[np.bool_]) -> None:
    if transparent.any():
        raise ImageError("some of its pixels are transparent, so their grey is unknown; save it without transparency")
