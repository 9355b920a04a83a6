"""The other tasks of DnCNN-3: what some of its training images get in place of noise.

One network for Gaussian noise, JPEG blocks and enlarged images, blind to which it is given (Zhang et al., IEEE TIP
26(7), 2017, section IV-A). Each training image gets one of the three, drawn evenly. The paper draws noise of 0 to 55
grey levels of 255, JPEG quality of 5 to 99, and factors of 2, 3 and 4; the noise here is that of the configuration.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from veilray.images.radiograph import FloatImage
from veilray.images.resize import resize
from veilray.obfuscation.noise import keyed

QUALITIES = range(5, 100)
"""JPEG qualities, evenly drawn."""
FACTORS = (2, 3, 4)
"""Factors by which an image is made smaller and enlarged again, evenly drawn."""


def other_task(clean: FloatImage, *, name: str) -> FloatImage | None:
    """A clean image (H, W), [0, 1], compressed or enlarged, the same shape and range; None where it is to get noise.

    All draws are functions of `name`.
    """
    key, task = divmod(keyed(name, b"task"), 3)
    match task:
        case 0:
            return None
        case 1:
            return compressed(clean, quality=QUALITIES[key % len(QUALITIES)])
        case _:
            return enlarged(clean, factor=FACTORS[key % len(FACTORS)])


def compressed(clean: FloatImage, *, quality: int) -> FloatImage:
    """An image (H, W), [0, 1], after JPEG compression at 8 bits; `quality` is that of the Independent JPEG Group."""
    stream = io.BytesIO()
    Image.fromarray(np.round(255 * clean).astype(np.uint8)).save(stream, "JPEG", quality=quality)
    pixels: FloatImage = np.asarray(Image.open(stream), dtype=np.float32) / np.float32(255)
    return pixels


def enlarged(clean: FloatImage, *, factor: int) -> FloatImage:
    """An image (H, W), [0, 1], made smaller by `factor`, and as large as it was again; bicubic both ways."""
    height, width = clean.shape
    small = resize(clean, height=max(1, height // factor), width=max(1, width // factor), bit_depth=16)
    return resize(small, height=height, width=width, bit_depth=16)
