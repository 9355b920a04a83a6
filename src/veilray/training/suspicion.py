"""Whether a release's noise is what the release says: objectives without clean images go by its word."""

from __future__ import annotations

import numpy as np

from veilray.cohort.release import Release
from veilray.errors import CohortError
from veilray.images.radiograph import FloatImage
from veilray.obfuscation.estimate import PATCH, estimate_noise_std
from veilray.training.data import TrainingImages

SAMPLE = 16
"""Training images that are looked at."""
RATIO = 1.07
"""Of estimated to stated std, or the other way round, from which it is told: the median over so many radiographs is
right within 5 %, and an objective that goes by a std that is wrong by more keeps noise or takes detail away."""
SMALL = 128 * 128
"""Pixels of an image below which the ratio is SMALL_RATIO: few patches, by which clamped noise looks up to 8 % weak."""
SMALL_RATIO = 1.15
ROUNDING = 1e-3
"""By which a level of a pixel file may miss an end of [0, 1]."""
PILED_UP = 0.005
"""Share of pixels at the two ends of what occurs that no noise without a clamp comes near."""


def noise_warnings(images: TrainingImages) -> list[str]:
    """What must be said of a release's noise before a training without clean images; empty elsewhere.

    Raises CohortError where a release states noise without a clamp, and pixels are piled up at two values; or with one,
    and pixels lie beyond it.
    """
    if not isinstance(images.data, Release) or images.choice.objective == "supervised":
        return []
    own = images.sets["train"]
    rows = own[np.linspace(0, len(own) - 1, min(SAMPLE, len(own))).astype(int)]  # of many patients
    stated = images.data.stds(rows)
    ratios, told = [], RATIO
    for row, std in zip(rows, stated, strict=True):
        noisy = images.data.gather_noisy(np.array([row]))[0]
        (_check_clamped if images.noise.clip else _check_unclamped)(noisy, images)
        if noisy.size < SMALL:
            told = SMALL_RATIO
        if min(noisy.shape) >= PATCH + 2:
            ratios.append(estimate_noise_std(noisy, clip=images.noise.clip) / float(std))
    ratio = float(np.median(ratios)) if ratios else 1.0
    if 1 / told <= ratio <= told:
        return []
    low, high = images.noise.std_range
    says, looks = images.noise.std_text, f"{ratio * low:.2g}" if low == high else f"{ratio:.2g} times that"
    return [
        f"warning: {images.data.path} says that its noise has std {says}, but it looks like {looks} (estimated from "
        f"{len(ratios)} images): the training goes by what is said, and would be wrong; ask the sender"
    ]


def _check_clamped(noisy: FloatImage, images: TrainingImages) -> None:
    low, high = float(noisy.min()), float(noisy.max())
    if low < -ROUNDING or high > 1 + ROUNDING:
        raise CohortError(
            f"{images.data.path} says that its noise is clamped to [0, 1], but an image's pixels reach from {low:.3g} "
            f"to {high:.3g}: it was not; ask the sender"
        )


def _check_unclamped(noisy: FloatImage, images: TrainingImages) -> None:
    ends = (noisy == noisy.min()) | (noisy == noisy.max())
    if float(ends.mean()) > PILED_UP:
        raise CohortError(
            f"{images.data.path} says that its noise is not clamped, but {float(ends.mean()):.0%} of an image's pixels "
            f"lie at {noisy.min():.3g} and {noisy.max():.3g}: it was clamped after all; ask the sender"
        )
