"""Resampling to a fixed size, as the published protocol does it."""

from __future__ import annotations

import numpy as np
from PIL import Image

from veilray.images.radiograph import FloatImage, to_levels, to_pixels


def resize(pixels: FloatImage, *, height: int, width: int, bit_depth: int) -> FloatImage:
    """Resample (H, W) float32 pixels in [0, 1] to (height, width) with Pillow's bicubic filter, antialiased.

    Images of up to 8 bits take Pillow's path for 8-bit images, rounded to levels, so that they equal the published
    preprocessing bit for bit. Deeper ones are resampled in float32 and clipped, since the filter overshoots at edges.
    """
    if pixels.shape == (height, width):
        return pixels
    if bit_depth <= 8:
        image = Image.fromarray(to_levels(pixels, np.uint8))
        return to_pixels(np.array(image.resize((width, height), Image.Resampling.BICUBIC)))
    image = Image.fromarray(np.ascontiguousarray(pixels, dtype=np.float32))
    resampled = np.array(image.resize((width, height), Image.Resampling.BICUBIC))
    clipped: FloatImage = np.clip(resampled, 0.0, 1.0)
    return clipped
