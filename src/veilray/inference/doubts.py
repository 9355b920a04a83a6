"""What makes a result doubtful: an image or its noise far from what the network was trained on. Never a refusal."""

from __future__ import annotations

from veilray.images.radiograph import FloatImage, Radiograph
from veilray.obfuscation.config import NoiseConfig
from veilray.obfuscation.estimate import PATCH, estimate_noise_std

COLOURED = 0.04
"""Mean difference between a pixel's strongest and weakest channel from which an image counts as one in colour: a
radiograph saved in colour has none, one with coloured marks or a tint little, a photograph several times as much."""

# The estimate is right within 15 %; a level beside the training's is no cause for doubt either.
_RATIO = 1.35
_MARGIN = 0.02


def doubts(radiograph: Radiograph, noise: NoiseConfig | None) -> list[str]:
    """Why the result of denoising an image may be worth little; `noise` is that of the training, None if unknown."""
    found = []
    if radiograph.colour > COLOURED:
        found.append("it is a picture in colour, so hardly a radiograph; its luminance was denoised")
    if radiograph.bit_depth < 8:
        found.append(f"it has {radiograph.bit_depth} bit a pixel, too few for a radiograph; the result has 8")
    found += noise_doubts(radiograph.pixels, noise)
    return found


def noise_doubts(pixels: FloatImage, noise: NoiseConfig | None, *, std: float | None = None) -> list[str]:
    """Whether an image's noise is far outside the training's; `std` is its true level, by default estimated."""
    if noise is None or min(pixels.shape) < PATCH + 2:
        return []
    level = estimate_noise_std(pixels, clip=noise.clip) if std is None else std
    low, high = noise.std_range
    if low / _RATIO - _MARGIN <= level <= high * _RATIO + _MARGIN:
        return []
    how = "about " if std is None else ""
    return [f"its noise has a std of {how}{level:.2g}, but the network was trained on {noise.std_text}"]
