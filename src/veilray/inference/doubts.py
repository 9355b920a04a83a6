"""What makes a result doubtful: an image or its noise far from what the network was trained on. Never a refusal."""

from __future__ import annotations

from veilray.images.radiograph import FloatImage, Radiograph
from veilray.obfuscation.config import NoiseConfig
from veilray.obfuscation.estimate import PATCH, estimate_noise_std

COLOURED = 0.04
"""Mean difference between a pixel's strongest and weakest channel from which an image counts as one in colour: a
radiograph saved in colour has none, one with coloured marks or a tint little, a photograph several times as much."""

# The estimate is right within 15 % on larger images; a level beside the training's is no cause for doubt either.
_RATIO = 1.35
_MARGIN = 0.02
_JUDGED = 3 * PATCH + 2
"""Shorter side in pixels from which an estimated level may be called far off: smaller images have at most two rows of
patches, and the median of so few is now and then off by more than that."""
_OBFUSCATED = 0.05
"""Std of an image's noise from which it was more likely obfuscated than taken with so little dose."""


def doubts(
    radiograph: Radiograph, noise: NoiseConfig | None, *, mean: float | None = None, std: float | None = None
) -> list[str]:
    """Why the result of denoising an image may be worth little.

    `noise` is that of the training, None if unknown; `mean` and `std` are those of the image's noise, as given.
    """
    found = []
    if radiograph.colour > COLOURED:
        found.append("it is a picture in colour, so hardly a radiograph; its luminance was denoised")
    if radiograph.bit_depth < 8:
        found.append(f"it has {radiograph.bit_depth} bit a pixel, too few for a radiograph; the result has 8")
    found += noise_doubts(radiograph.pixels, noise, mean=mean, std=std)
    return found


def noise_doubts(
    pixels: FloatImage, noise: NoiseConfig | None, *, mean: float | None = None, std: float | None = None
) -> list[str]:
    """Whether an image's noise is far outside the training's, or looks like one whose mean should have been given.

    `mean` is its mean, None where nobody gave it; `std` its true level, by default estimated.
    """
    if noise is None:
        return []
    found = _mean_doubts(noise, mean)
    if std is None and min(pixels.shape) < PATCH + 2:
        return found
    level = estimate_noise_std(pixels, clip=noise.clip) if std is None else std
    low, high = noise.std_range
    judged = std is not None or min(pixels.shape) >= _JUDGED
    if judged and not low / _RATIO - _MARGIN <= level <= high * _RATIO + _MARGIN:
        how = "about " if std is None else ""
        found.append(f"its noise has a std of {how}{level:.2g}, but the network was trained on {noise.std_text}")
    if mean is None and isinstance(noise.mean, tuple) and level > _OBFUSCATED:
        found.append("no mean given, 0 assumed; an obfuscated image needs the mean of its noise (--mean)")
    return found


def _mean_doubts(noise: NoiseConfig, mean: float | None) -> list[str]:
    """A mean far outside the training's; where nothing is clamped, a shift makes up for any."""
    low, high = noise.mean_range
    if mean is None or not noise.clip or low - _MARGIN <= mean <= high + _MARGIN:
        return []
    return [
        f"its noise has a mean of {mean:g}, but the network was trained on {noise.mean_text}; the image is shifted, "
        "and what the clamp cut off is estimated worse"
    ]
