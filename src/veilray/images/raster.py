"""Stored values of images that are no DICOM, and JPEG."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from veilray.errors import ImageError
from veilray.images.limits import check_size
from veilray.images.radiograph import StoredImage

JPEG_SIGNATURE = b"\xff\xd8\xff"


@dataclass(frozen=True, kw_only=True)
class Raster:
    """Stored values of a greyscale image, or the luma of one in colour."""

    stored: StoredImage
    """(H, W), values in [0, 2**bit_depth - 1]."""
    bit_depth: int
    """Bits a sample, as the file declares them."""
    mode: str
    """Pillow's name for the kind of image."""
    colour: float = 0.0
    """Mean difference between a pixel's strongest and weakest channel, of the full range; 0 where all are grey."""


def decode_jpeg(data: bytes) -> Raster:
    """Decode a JPEG in greyscale or colour, turned as its EXIF orientation says; raises ImageError with the reason."""
    try:
        opened = Image.open(io.BytesIO(data), formats=("JPEG",))
    except Image.DecompressionBombError:
        raise ImageError("its header declares more pixels than Pillow agrees to read") from None
    with opened as image:
        check_size(*image.size)
        if getattr(image, "n_frames", 1) > 1:
            raise ImageError("it holds several pictures; save the radiograph alone")
        if image.mode not in ("L", "RGB"):
            raise ImageError(f"it is a JPEG in {image.mode}; save it in greyscale")
        upright = ImageOps.exif_transpose(image)
        if upright.mode == "L":
            return Raster(stored=np.array(upright), bit_depth=8, mode=image.mode)
        colours = np.asarray(upright)
        return Raster(stored=luma(colours), bit_depth=8, mode=image.mode, colour=colourfulness(colours))


def colourfulness(colours: npt.NDArray[Any]) -> float:
    """(H, W, 3) uint8 or uint16 -> `Raster.colour`."""
    return float((colours.max(axis=-1) - colours.min(axis=-1)).mean()) / float(np.iinfo(colours.dtype).max)


def luma(colours: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """(H, W, 3) uint8 or uint16 as (H, W) of that type: ITU-R 601-2 luma in Pillow's fixed point.

    Its weights add up to one, so where the channels are equal the result is exactly that channel.
    """
    if colours.dtype == np.uint8:
        return np.array(Image.fromarray(np.ascontiguousarray(colours)).convert("L"))
    red, green, blue = (colours[..., channel].astype(np.uint32) for channel in range(3))
    return ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16).astype(colours.dtype)
