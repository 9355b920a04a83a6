"""Ways to undo noise that need no network: averaging, subtracting two levels of one field, and guessing a seed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from veilray.images.radiograph import FloatImage
from veilray.privacy.matched_filter import inverse_mean_images

SEARCHED = 1024
"""Pixels by which a seed is told: the first of each image, row by row."""
CERTAIN = 0.3
"""Correlation above which a seed counts as found; the best of a million wrong ones reaches about 0.16."""

_AT_ONCE = 2048

DrawField = Callable[[int, int], npt.NDArray[np.float32]]
"""A seed and a number of pixels -> the first so many standard normal values that the generator gives for it."""


def averages(
    releases: Iterable[FloatImage], counts: Sequence[int], *, mean: float, std: float, clip: bool
) -> Iterator[tuple[int, FloatImage]]:
    """The originals as far as the average of the first so many releases of them tells, for each of `counts`.

    Releases are (N, H, W), float32, and so is what comes back. Where they were clamped, the average goes through the
    inverse of the clamp's mean map.
    """
    total: npt.NDArray[np.float64] | None = None
    for number, images in enumerate(releases, start=1):
        total = images.astype(np.float64) if total is None else total + images
        if number in counts:
            yield number, inverse_mean_images(total / number, mean=mean, std=std, clip=clip)


def subtracted(
    weak: FloatImage, strong: FloatImage, *, mean: float, weak_std: float, strong_std: float, clip: bool
) -> FloatImage:
    """The originals, if two releases were made from one noise field by scaling it: y = x + mean + std n for both.

    Then x = (strong_std weak - weak_std strong) / (strong_std - weak_std) - mean wherever neither was clamped; pixels
    that were take the inverse of the clamp's mean map of the weaker release, smoothed over 3 x 3 pixels.
    """
    from scipy.ndimage import uniform_filter

    exact = (strong_std * weak - weak_std * strong) / (strong_std - weak_std) - mean
    if not clip:
        bounded: FloatImage = np.clip(exact, 0.0, 1.0).astype(np.float32)
        return bounded
    guess = inverse_mean_images(
        uniform_filter(weak, size=(1, 3, 3), mode="nearest"), mean=mean, std=weak_std, clip=True
    )
    cut = (weak <= 0.0) | (weak >= 1.0) | (strong <= 0.0) | (strong >= 1.0)
    recovered: FloatImage = np.where(cut, guess, np.clip(exact, 0.0, 1.0)).astype(np.float32)
    return recovered


def find_seeds(
    noisy: FloatImage, *, seeds: int, draw: DrawField, advance: Callable[[int], None] | None = None
) -> list[int | None]:
    """The seed from which the noise of each image was drawn, of all seeds below `seeds`; None where none is.

    `noisy` (N, H, W). The attacker has nothing but the images and the generator: anatomy is smooth, so what remains of
    an image after its neighbours' mean is mostly noise, and correlates with the field of the right seed alone.
    """
    rough = _rough(noisy)
    best = np.full(len(noisy), -1.0)
    found = np.zeros(len(noisy), dtype=np.int64)
    for begin in range(0, seeds, _AT_ONCE):
        numbers = range(begin, min(begin + _AT_ONCE, seeds))
        fields = np.stack([draw(seed, rough.shape[1]) for seed in numbers])
        fields -= fields.mean(axis=1, keepdims=True)
        fields /= np.linalg.norm(fields, axis=1, keepdims=True)
        alike = rough @ fields.T
        top = alike.argmax(axis=1)
        value = alike[np.arange(len(rough)), top]
        found = np.where(value > best, begin + top, found)
        best = np.maximum(best, value)
        if advance is not None:
            advance(len(numbers))
    return [int(seed) if value > CERTAIN else None for seed, value in zip(found, best, strict=True)]


def without_field(
    noisy: FloatImage, field: FloatImage, *, mean: float, std: float, clip: bool
) -> tuple[FloatImage, npt.NDArray[np.bool_]]:
    """One image, (H, W), with its known noise taken away, and which pixels are exact: those that no clamp cut."""
    whole = np.ones(noisy.shape, dtype=np.bool_) if not clip else (noisy > 0.0) & (noisy < 1.0)
    recovered: FloatImage = np.clip(noisy - np.float32(mean) - np.float32(std) * field, 0.0, 1.0)
    # A clamped pixel says only on which side it lay; the nearest value that agrees with it is the clamp itself.
    return recovered, whole


def _rough(noisy: FloatImage) -> npt.NDArray[np.float32]:
    """The first pixels of each image less a moving average along the rows, of unit length: (N, P)."""
    from scipy.ndimage import uniform_filter1d

    first = noisy.reshape(len(noisy), -1)[:, :SEARCHED].astype(np.float32)
    rough = first - uniform_filter1d(first, size=9, axis=1, mode="nearest")
    rough -= rough.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(rough, axis=1, keepdims=True)
    unit: npt.NDArray[np.float32] = np.divide(rough, lengths, out=np.zeros_like(rough), where=lengths > 0.0)
    return unit
