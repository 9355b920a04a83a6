"""Where the noise of a release comes from."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from veilray.cohort.cohort import Cohort
from veilray.cohort.records import NoiseKind
from veilray.images.radiograph import FloatImage
from veilray.obfuscation.config import NoiseConfig


@dataclass(frozen=True, kw_only=True)
class NoiseSource:
    """Draws the noise of one image after the other."""

    kind: NoiseKind
    draw: Callable[[int, tuple[int, int]], tuple[FloatImage, float]]
    """From the image's row in the cohort and its shape: noise of mean 0, (H, W) float32, and its standard deviation."""


def entropy_noise(noise: NoiseConfig) -> NoiseSource:
    """From the operating system's entropy: no seed exists, so none can leak, and nothing can be drawn again."""
    from veilray.obfuscation.noise import entropy_normal  # it brings torch, which secret noise does without

    low, high = noise.std_range

    def draw(_: int, shape: tuple[int, int]) -> tuple[FloatImage, float]:
        std = low + (high - low) * (secrets.randbits(53) / 2**53)
        field = entropy_normal(shape)
        field *= np.float32(std)
        return field, std

    return NoiseSource(kind="entropy", draw=draw)


def seeded_noise(noise: NoiseConfig, *, cohort: Cohort, seed: int) -> NoiseSource:
    """From a seed and the original image ids, for research: whoever knows both can subtract it."""
    import torch

    from veilray.obfuscation.noise import fill_standard_normal, keyed_draw

    prefix = f"release/{noise.single_mean}/{noise.std}/{noise.clip}/"

    def draw(row: int, shape: tuple[int, int]) -> tuple[FloatImage, float]:
        # A name that no draw of a training has, and that no other noise has: two levels of one noise field could be
        # subtracted from each other, which gives the image away without the seed.
        drawn = keyed_draw(noise, seed=seed, epoch=0, image_id=f"{prefix}{cohort.image_id(row)}")
        field = np.empty(shape, dtype=np.float32)
        fill_standard_normal(torch.from_numpy(field), key=drawn.key)
        field *= np.float32(drawn.std)
        return field, drawn.std

    return NoiseSource(kind="seeded", draw=draw)
