"""A coarse picture of a radiograph in 256 bits, by which re-encoded and rescaled copies of an acquisition are told.

The signs of the 256 lowest coefficients but the mean of a discrete cosine transform of the image at 32 x 32 (after
Zauner 2010, Implementation and Benchmarking of Perceptual Image Hash Functions, there with 64 bits; chest radiographs
are too alike for so few). Of an inverted image all signs are turned round, of a mirrored one those of odd frequencies,
so such copies are told too. `benchmarks/likeness.py` measures how often it errs.
"""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt
from PIL import Image

from veilray.images.radiograph import FloatImage

LIKENESS_BYTES = 32
NEAR = 32
"""Likenesses that differ in at most so many of their 256 bits are taken for copies of one acquisition; so are those of
which so few agree: one is inverted."""

_SIDE = 32


def likeness(pixels: FloatImage) -> bytes:
    """The likeness of one image: (H, W), float32, [0, 1]; 32 bytes. Of the whole image, whatever its size or shape."""
    from scipy.fft import dctn

    image = Image.fromarray(np.ascontiguousarray(pixels, dtype=np.float32))
    small = np.array(image.resize((_SIDE, _SIDE), Image.Resampling.BOX), dtype=np.float64)
    return np.packbits(dctn(small).ravel()[_lowest()] > 0).tobytes()


def mirrored(look: bytes) -> list[bytes]:
    """The likenesses of an image and of its mirror images: as it is, left for right, upside down, and both."""
    odd_row, odd_column = _odd()
    bits = np.unpackbits(np.frombuffer(look, dtype=np.uint8))
    turns = (np.zeros_like(bits), odd_column, odd_row, odd_row ^ odd_column)
    return [np.packbits(bits ^ turn).tobytes() for turn in turns]


def is_near(apart: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Which of these `distances` are those of copies, inverted ones too; same shape."""
    near: npt.NDArray[np.bool_] = (apart <= NEAR) | (apart >= 8 * LIKENESS_BYTES - NEAR)
    return near


def distances(looks: npt.NDArray[np.uint64], one: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """How many bits `one`, (4,), differs in from each of `looks`, (N, 4); (N,)."""
    counts: npt.NDArray[np.int64] = np.bitwise_count(looks ^ one).sum(axis=1, dtype=np.int64)
    return counts


def as_words(look: bytes) -> npt.NDArray[np.uint64]:
    """A likeness as (4,) words."""
    return np.frombuffer(look, dtype=np.uint64)


@functools.cache
def _odd() -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Which bits are of coefficients with an odd row, (256,), and with an odd column."""
    row, column = np.divmod(_lowest(), _SIDE)
    return (row % 2).astype(np.uint8), (column % 2).astype(np.uint8)


@functools.cache
def _lowest() -> npt.NDArray[np.intp]:
    row, column = np.mgrid[:_SIDE, :_SIDE]
    return np.argsort((row + column).ravel(), kind="stable")[1 : 8 * LIKENESS_BYTES + 1]
