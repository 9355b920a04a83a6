"""What a benchmark found, ready to be shown: runs of the same combination together, with the effects of the factors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from veilray.errors import DataError
from veilray.evaluation.benchmark.effects import Effect, Saving, factor_effects, savings
from veilray.evaluation.benchmark.plan import SETTING_OF, BenchmarkPlan
from veilray.evaluation.benchmark.record import RunRecord, done
from veilray.evaluation.benchmark.run import run_folder
from veilray.evaluation.results import METRICS, MODEL, NOISY, ImageScore, read_scores
from veilray.evaluation.scoring import BOOTSTRAP_SEED, CONFIDENCE, RESAMPLES
from veilray.metrics.interval import Interval
from veilray.metrics.statistics import clustered_bootstrap
from veilray.training.timing import PARTS

BUSY = 1.5
"""Load for each core above which a machine was doing something else beside the benchmark."""


@dataclass(frozen=True, kw_only=True)
class RunGroup:
    """The finished runs of one combination, one for each seed."""

    levels: dict[str, str]
    records: tuple[RunRecord, ...]
    metrics: dict[str, Interval | None]
    """Mean over the test images, averaged over the seeds image by image, with an interval clustered by patient."""
    seconds: tuple[float, ...]
    """Training seconds, by seed."""
    images_per_second: tuple[float, ...]
    share_of_peak: float
    """Mean over the seeds."""
    operations_per_image: float
    peak_per_second: float
    peak_memory_bytes: int | None
    """The largest over the seeds."""
    parts: dict[str, float]
    """Mean seconds of a training by part; `other` is what is in none of them."""
    metric_share: float | None
    """Share of the training's time that validation spends beyond its forward passes; None where not recorded."""


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """A benchmark's records and all that follows from them."""

    plan: BenchmarkPlan
    records: tuple[RunRecord, ...]
    groups: tuple[RunGroup, ...]
    """In the order of the plan."""
    noisy: dict[str, dict[str, Interval | None]]
    """noise level -> metric -> mean of the noisy input."""
    effects: tuple[Effect, ...]
    savings: tuple[Saving, ...]
    load: float
    """Largest load for each core before a run, `RunRecord.load`; 0 where nobody counted."""
    varied: tuple[str, ...]
    """Factors with more than one level."""
    images: int
    patients: int


def analyse(plan: BenchmarkPlan, records: Sequence[RunRecord], out: Path) -> Analysis:
    """Put a benchmark's records together with the scores in its runs. RunError where a run's scores are damaged.

    Raises DataError where no run is done: there is nothing to analyse.
    """
    finished = done(records)
    if not finished:
        reasons = "; ".join(dict.fromkeys(record.reason for record in records))
        raise DataError(f"no run of the plan is done: {reasons}")
    combinations = dict.fromkeys(record.combination for record in finished)
    groups = [_group([one for one in finished if one.combination == which], out) for which in combinations]
    scores = read_scores(run_folder(out, finished[0].name))
    speakers = {record.levels["noise"]: record for record in reversed(finished)}
    return Analysis(
        plan=plan,
        records=tuple(records),
        groups=tuple(groups),
        noisy={level: _means([_scores(out, speakers[level], NOISY)]) for level in reversed(speakers)},
        effects=tuple(factor_effects(records)),
        savings=tuple(savings(records)),
        load=max((record.load or 0.0 for record in finished), default=0.0),
        varied=tuple(name for name in SETTING_OF if len({record.levels[name] for record in records}) > 1),
        images=len({score.image_id for score in scores}),
        patients=len({score.patient_id for score in scores}),
    )


def _group(records: list[RunRecord], out: Path) -> RunGroup:
    timings = [record.timings for record in records if record.timings is not None]
    arithmetic = [record.arithmetic for record in records if record.arithmetic is not None]
    memory = [timing.peak_memory_bytes for timing in timings if timing.peak_memory_bytes is not None]
    parts = _parts(records)
    seconds = tuple(timing.seconds for timing in timings)
    return RunGroup(
        levels=records[0].levels,
        records=tuple(records),
        metrics=_means([_scores(out, record, MODEL) for record in records]),
        seconds=seconds,
        images_per_second=tuple(timing.images_per_second for timing in timings),
        share_of_peak=float(np.mean([one.share_of_peak for one in arithmetic])),
        operations_per_image=arithmetic[0].operations_per_image,
        peak_per_second=float(np.mean([one.peak_per_second for one in arithmetic])),
        peak_memory_bytes=max(memory, default=None),
        parts=parts,
        metric_share=parts["metrics"] / float(np.mean(seconds)) if "metrics" in parts else None,
    )


def _parts(records: Sequence[RunRecord]) -> dict[str, float]:
    """Mean seconds by part, and the rest of the training's seconds; empty where a run recorded no parts."""
    timings = [record.timings for record in records if record.timings is not None]
    if not all(timing.parts for timing in timings):
        return {}
    names = [*PARTS, *sorted({name for timing in timings for name in timing.parts} - set(PARTS))]
    means = {name: float(np.mean([timing.parts.get(name, 0.0) for timing in timings])) for name in names}
    other = float(np.mean([timing.seconds for timing in timings])) - sum(means.values())
    return {name: value for name, value in means.items() if value} | {"other": max(other, 0.0)}


def _scores(out: Path, record: RunRecord, method: str) -> list[ImageScore]:
    scores = [score for score in read_scores(run_folder(out, record.name)) if score.method == method]
    return sorted(scores, key=lambda score: score.image_id)


def _means(seeds: Sequence[Sequence[ImageScore]]) -> dict[str, Interval | None]:
    patients = [score.patient_id for score in seeds[0]]
    means: dict[str, Interval | None] = {}
    for metric in METRICS:
        values = [[getattr(score, metric) for score in scores] for scores in seeds]
        means[metric] = None
        if all(value is not None for row in values for value in row) and len(set(patients)) > 1:
            average = np.mean(np.array(values, dtype=np.float64), axis=0)
            means[metric] = clustered_bootstrap(
                average, patients, resamples=RESAMPLES, seed=BOOTSTRAP_SEED, confidence=CONFIDENCE
            )
    return means
