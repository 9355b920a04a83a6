"""Whether a returned image can be of an original: what a denoiser leaves as it was is told from another radiograph.

Names are no proof: whoever denoises may swap two files, by mistake or not, and a radiograph under another patient's
name is worse than none. Noise averages out over large blocks and a denoiser keeps them, so the images are compared at
16 x 16, small ones at less. `benchmarks/resemblance.py` measures how far apart that keeps an image's own original and
all others.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from PIL import Image

from veilray.images.radiograph import FloatImage

ALIKE = 0.98
"""Images of one radiograph resemble each other at least so much."""

_MOST_BLOCKS, _LEAST_BLOCKS = 16, 4
"""Along each side of an image."""
_BLOCK = 8
"""Pixels along each side of a block, at least: fewer leave too much of the noise."""
_SET_ASIDE = 0.05
"""Share of the blocks that fit least and are not looked at: a marker or a name was blanked in one of the images."""


def resemblance(pixels: FloatImage, original: FloatImage) -> float:
    """The correlation of two images, (H, W), float32, [0, 1], block by block and without the blocks that fit least.

    1 at most; 0 where one of them is uniform. Sizes may differ: each is taken whole.
    """
    blocks = math.isqrt(min(pixels.size, original.size)) // _BLOCK
    blocks = max(_LEAST_BLOCKS, min(_MOST_BLOCKS, blocks))
    one, other = _coarse(pixels, blocks), _coarse(original, blocks)
    kept = np.ones(one.shape, dtype=bool)
    for _ in range(3):  # the line through the blocks settles
        slope, offset = _line(one[kept], other[kept])
        off = np.abs(one - slope * other - offset)
        kept = off <= np.quantile(off, 1 - _SET_ASIDE)
    one, other = one[kept] - one[kept].mean(), other[kept] - other[kept].mean()
    norm = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(one @ other) / norm if norm > 1e-9 else 0.0


def _line(values: npt.NDArray[np.float64], by: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Slope and offset of the least-squares line of `values` by `by`."""
    centred = by - by.mean()
    square = float(centred @ centred)
    slope = float(centred @ values) / square if square > 0 else 0.0
    return slope, float(values.mean() - slope * by.mean())


def _coarse(pixels: FloatImage, blocks: int) -> npt.NDArray[np.float64]:
    """(H, W) as the means of blocks x blocks parts, in one row."""
    image = Image.fromarray(np.ascontiguousarray(pixels, dtype=np.float32))
    return np.array(image.resize((blocks, blocks), Image.Resampling.BOX), dtype=np.float64).ravel()
