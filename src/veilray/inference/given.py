"""What a caller gives a denoiser, checked: an image's values, and the mean and standard deviation of its noise."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from veilray.errors import UsageError
from veilray.images.radiograph import FloatImage

LARGEST = 64.0
"""Largest magnitude of a pixel: the strongest noise there is, not clamped, stays within; levels of 8 bits do not."""


def check_pixels(pixels: FloatImage) -> None:
    """Raises UsageError for values that are no floating-point numbers about [0, 1]."""
    dtype = np.asarray(pixels).dtype
    if not np.issubdtype(dtype, np.floating):
        raise UsageError(f"the image has pixels of {dtype}; give floating-point values in [0, 1]")
    extreme = max(float(np.max(pixels, initial=0.0)), -float(np.min(pixels, initial=0.0)))
    if not math.isfinite(extreme):
        raise UsageError("the image has pixels that are not finite numbers; give values in [0, 1]")
    if extreme > LARGEST:
        raise UsageError(f"the image has pixels of magnitude {extreme:g}; give values in [0, 1]")


def check_mean(mean: float | None) -> None:
    """Raises UsageError for a mean that is not a finite number."""
    if mean is not None and not math.isfinite(mean):
        raise UsageError(f"a mean of {mean:g} was given: it must be a finite number")


def each_std(std: float | Sequence[float] | None, *, count: int) -> list[float] | None:
    """The std of each of `count` images, of one for all or one for each; None where none is given.

    Raises UsageError for another number of them, or one that is below 0 or not finite.
    """
    if std is None:
        return None
    given: list[float] = np.atleast_1d(np.asarray(std, dtype=np.float64)).tolist()
    wrong = [one for one in given if not 0.0 <= one < math.inf]
    if wrong:
        raise UsageError(f"a std of {wrong[0]:g} was given: it must be a finite number, 0 or above")
    if np.ndim(std) == 0:
        return given * count
    if len(given) != count:
        raise UsageError(f"{len(given)} stds were given for {count} images: give one for all or one for each")
    return given
