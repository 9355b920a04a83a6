"""What a comparison of runs consists of: values only, computed in compare.py and shown by the report."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from veilray.evaluation.results import ImageScore, Summary
from veilray.metrics.interval import Interval
from veilray.obfuscation.config import NoiseConfig
from veilray.training.config import RunConfig
from veilray.training.run import EpochRecord

Scores = npt.NDArray[np.float64]
Role = Literal["median", "best", "worst", "low"]

HIGHER_IS_BETTER = {"psnr": True, "ssim": True, "ssim_3x3": True, "lpips": False, "psnr_unclamped": True}
"""Direction of every metric in `results.METRICS`."""

SIGNIFICANCE = 0.05
"""Level below which a p-value, Holm's correction applied, counts as significant."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """One evaluated run, at one noise, as read."""

    folder: Path
    """Folder that holds the results: the run's own, or that of one of its noise levels."""
    config: RunConfig
    summary: Summary
    scores: tuple[ImageScore, ...]
    tuning: dict[str, tuple[Any, Any]]
    """Of a classical method, its strength and the images that it was chosen on, where the results say so."""
    curve: tuple[EpochRecord, ...]
    environment: dict[str, Any]
    source: str | Path
    """What `Denoiser.load` takes."""

    @property
    def best_epoch(self) -> EpochRecord | None:
        """Epoch of the lowest validation loss, whose weights are evaluated; None without a training curve."""
        return min(self.curve, key=lambda epoch: (epoch.validation_loss, epoch.epoch), default=None)


@dataclass(frozen=True, kw_only=True, eq=False)
class Arm:
    """One row of the results: the noisy input, a classical method, or the runs that differ in their seed only."""

    label: str
    """Unique within a noise level, the same at every noise level."""
    kind: Literal["noisy", "classical", "model"]
    setup: str
    """Hardware and arithmetic of the training; empty unless `kind` is model."""
    runs: tuple[Run, ...]
    """By seed; empty unless `kind` is model."""
    settings: dict[str, str]
    """Every setting that tells models apart, by its key in the configuration; empty unless `kind` is model."""
    scores: dict[str, Scores | None]
    """metric -> (n_images,), float64, averaged over the seeds, in the order of `Comparison.image_ids`; None where the
    metric was not computed."""
    metrics: dict[str, Interval | None]
    """metric -> mean and interval over the images; None where it was not computed."""
    training_seconds: float | None
    """Mean over the seeds; None where no training is known."""
    core_seconds: float | None = None
    """Seconds of one core that an image takes; None where it was not measured."""
    best: frozenset[str] = frozenset()
    """Metrics in which it beats every other method of its noise level, each difference significant."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Pair:
    """The paired difference of two arms in one metric, on the same images with the same noise."""

    first: str
    second: str
    """Labels of the arms; the difference is the first minus the second."""
    metric: str
    difference: Interval
    p_value: float
    """Wilcoxon's signed-rank test on the means of the patients, two-sided."""
    p_holm: float
    """`p_value` after Holm's correction over every pair, metric and noise level of the comparison."""
    share_won: float
    """Share of images on which the first arm is better; a tie counts half."""
    settings: tuple[str, ...]
    """Keys of the settings in which two models differ; empty where one is a classical method."""
    per_image: Scores
    """(n_images,), float64: the differences image by image."""

    @property
    def significant(self) -> bool:
        """Whether the corrected p-value is below `SIGNIFICANCE`."""
        return self.p_holm < SIGNIFICANCE


@dataclass(frozen=True, kw_only=True, eq=False)
class Level:
    """Everything that was evaluated with one noise: the same distribution and the same draws."""

    label: str
    noise: NoiseConfig
    test_noise_seed: int | None
    """None where the noise came with a release."""
    arms: tuple[Arm, ...]
    """The noisy input, classical methods, then the models."""
    pairs: tuple[Pair, ...]

    @property
    def models(self) -> tuple[Arm, ...]:
        """The trained arms."""
        return tuple(arm for arm in self.arms if arm.kind == "model")


@dataclass(frozen=True, kw_only=True, eq=False)
class Comparison:
    """Evaluated runs side by side, checked to be comparable."""

    levels: tuple[Level, ...]
    """By strength of the noise."""
    split: str
    cohort: str
    cohort_digest: str
    image_ids: tuple[str, ...]
    patient_ids: tuple[str, ...]
    """One for each image."""
    confidence: float
    resamples: int
    bootstrap_seed: int
    notes: tuple[str, ...] = field(default=())
    """What the evaluations said a reader must know."""

    @property
    def runs(self) -> tuple[Run, ...]:
        """Every run, by noise level, arm and seed."""
        return tuple(run for level in self.levels for arm in level.arms for run in arm.runs)
