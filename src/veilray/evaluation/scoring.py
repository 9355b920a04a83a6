"""Scores of estimates image by image, and their means with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from veilray.errors import DataError
from veilray.evaluation.comparison import HIGHER_IS_BETTER
from veilray.evaluation.results import METRICS, ImageScore, PairedDifference
from veilray.metrics.interval import Interval
from veilray.metrics.lpips import LPIPS
from veilray.metrics.lpips import SMALLEST as SMALLEST_LPIPS
from veilray.metrics.psnr import psnr
from veilray.metrics.ssim import ssim
from veilray.metrics.statistics import clustered_bootstrap, paired_comparison
from veilray.training.data import TrainingImages
from veilray.training.sets import Rows

CONFIDENCE = 0.95
RESAMPLES = 2000
BOOTSTRAP_SEED = 0


@dataclass(frozen=True, kw_only=True)
class Perceptual:
    """LPIPS, or why it is not computed."""

    network: LPIPS | None
    note: str = ""


def perceptual_for(perceptual: Perceptual, images: TrainingImages, rows: Rows) -> Perceptual:
    """LPIPS for these images, or that it is not computed because some are too small for its network."""
    small = [images.data.size(int(group[0])) for group in images.data.groups(rows) if len(group)]
    small = [size for size in small if min(size) < SMALLEST_LPIPS]
    if perceptual.network is None or not small:
        return perceptual
    height, width = small[0]
    note = f"LPIPS was not computed: it needs {SMALLEST_LPIPS} x {SMALLEST_LPIPS} pixels, and some images have "
    return Perceptual(network=None, note=f"{note}{height} x {width}")


def score_images(
    method: str, estimate: Tensor, clean: Tensor, rows: Rows, images: TrainingImages, *, lpips: LPIPS | None
) -> list[ImageScore]:
    """Scores of (N, 1, H, W) estimates; all metrics see the clamped estimate, but for the paper's unclamped PSNR."""
    clamped, raw = estimate.clamp(0.0, 1.0), images.config.evaluate.unclamped_psnr
    columns = {
        "psnr": psnr(clamped, clean, data_range=1.0),
        "ssim": ssim(clamped, clean, data_range=1.0),
        "ssim_3x3": ssim(clamped, clean, data_range=1.0, window=3),
        # Estimates of networks are on the device that made them, those of classical methods on the CPU.
        "lpips": lpips.to(clamped.device)(clamped, clean) if lpips is not None else None,
        "psnr_unclamped": psnr(estimate, clean, data_range=1.0) if raw else None,
    }
    values: dict[str, list[Any]] = {
        name: [None] * len(rows) if column is None else column.tolist() for name, column in columns.items()
    }
    return [
        ImageScore(
            image_id=images.image_id(int(row)),
            patient_id=images.data.patient_id(int(row)),
            method=method,
            **{name: column[index] for name, column in values.items()},
        )
        for index, row in enumerate(rows)
    ]


def means(scores: Sequence[ImageScore]) -> tuple[dict[str, Interval | None], list[str]]:
    """Each metric's mean over one method's images with its interval, and why there is none where there is none."""
    patients = [score.patient_id for score in scores]
    found: dict[str, Interval | None] = {}
    notes = []
    for metric in METRICS:
        values = [getattr(score, metric) for score in scores]
        found[metric] = None
        if None not in values:
            try:
                found[metric] = clustered_bootstrap(
                    np.array(values), patients, resamples=RESAMPLES, seed=BOOTSTRAP_SEED, confidence=CONFIDENCE
                )
            except DataError as error:  # one patient alone, or an infinite PSNR: the images' scores still stand
                notes.append(f"No mean of {metric} for {scores[0].method}: {error}.")
    return found, notes


def differences(own: Sequence[ImageScore], other: Sequence[ImageScore]) -> dict[str, PairedDifference | None]:
    """The first method's scores minus the second's, image by image, metric by metric; None where there is no mean."""
    of_other = {score.image_id: score for score in other}
    patients = [score.patient_id for score in own]
    found: dict[str, PairedDifference | None] = {}
    for metric in METRICS:
        mine = [getattr(score, metric) for score in own]
        theirs = [getattr(of_other[score.image_id], metric) for score in own]
        found[metric] = None
        if None in mine or None in theirs:
            continue
        try:
            result = paired_comparison(
                np.array(mine),
                np.array(theirs),
                patients,
                higher_is_better=HIGHER_IS_BETTER[metric],
                resamples=RESAMPLES,
                seed=BOOTSTRAP_SEED,
                confidence=CONFIDENCE,
            )
        except DataError:  # the notes on the means say why
            continue
        found[metric] = PairedDifference(
            **result.difference.model_dump(), p_value=result.p_value, share_won=result.share_won
        )
    return found
