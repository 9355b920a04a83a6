"""What each factor of a benchmark does to speed and to quality: paired across the other factors, over the seeds.

A pair is two runs that agree in every factor but one, and in the seed. The combinations of a plan are chosen, not
drawn; chance enters through the seeds (and through what else the machine did). So an effect is the mean over the
combinations of their mean pairs, and its t interval takes its variance from the scatter of the pairs within a
combination, pooled over the combinations: the block analysis of a factorial experiment (Montgomery, Design and Analysis
of Experiments, chapters 3 and 4).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from scipy import stats

from veilray.evaluation.benchmark.plan import SETTING_OF, SINGLE
from veilray.evaluation.benchmark.record import RunRecord, done
from veilray.evaluation.labels import flatten
from veilray.training.config import RunConfig

CONFIDENCE = 0.95
SPEED = "images_per_second"
SECONDS = "seconds_per_epoch"
QUALITY = ("psnr", "ssim", "lpips")

Kind = Literal["ratio", "difference"]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean ratio (geometric) or a mean difference, with the pairs it comes from."""

    kind: Kind
    mean: float
    low: float | None
    """Ends of the 95 % interval; None where no combination has two pairs, so that nothing is known of the scatter."""
    high: float | None
    pairs: int
    combinations: int
    seeds: int
    smallest: float
    """Smallest and largest mean of a combination: far apart, the effect depends on the other factors."""
    largest: float


@dataclass(frozen=True, kw_only=True)
class Effect:
    """One level of a factor against its reference level."""

    factor: str
    reference: str
    level: str
    measures: dict[str, Estimate]
    """SPEED as a ratio and each metric of QUALITY as a difference, where there are pairs that have it."""
    also: tuple[str, ...]
    """Settings other than the factor's that differ in some pair: the effect is theirs too."""


@dataclass(frozen=True, kw_only=True)
class Saving:
    """A combination on several devices against one device."""

    levels: dict[str, str]
    devices: int
    published: float | None
    """Time saved as the paper counts it: 1 - seconds / seconds of one device with the plan's first level of every
    factor but model and noise, whatever else differs; None where that was not run."""
    speedup: Estimate | None
    """Seconds an epoch of one device over its own, everything else equal, paired by seed; None without such pairs. Its
    interval takes the scatter of seeds from all combinations of the set-up, since one has few."""
    quality: dict[str, Estimate]
    """metric -> difference to one device, paired likewise."""
    also: tuple[str, ...]
    """Settings other than the set-up that differ from the one device's."""

    @property
    def saved(self) -> Estimate | None:
        """Share of the time of one device that is saved, everything else equal."""
        if self.speedup is None:
            return None
        up = self.speedup
        return Estimate(
            kind="difference",
            mean=1 - 1 / up.mean,
            low=None if up.low is None else 1 - 1 / up.low,
            high=None if up.high is None else 1 - 1 / up.high,
            pairs=up.pairs,
            combinations=up.combinations,
            seeds=up.seeds,
            smallest=1 - 1 / up.smallest,
            largest=1 - 1 / up.largest,
        )


def factor_effects(records: Sequence[RunRecord]) -> list[Effect]:
    """The effect of every level of every factor that varies, against the factor's first level, or one device."""
    finished = done(records)
    effects = []
    for factor in SETTING_OF:
        levels = list(dict.fromkeys(record.levels[factor] for record in records))
        reference = reference_level(factor, levels)
        for level in levels:
            pairs = _pairs(finished, factor, reference, level) if level != reference else []
            if pairs:
                effects.append(
                    Effect(
                        factor=factor,
                        reference=reference,
                        level=level,
                        measures=_measures(pairs),
                        also=_also_different(pairs, factor),
                    )
                )
    return effects


def savings(records: Sequence[RunRecord]) -> list[Saving]:
    """Every combination on several devices against one device, by the paper's definition and everything else equal."""
    finished = done(records)
    found = []
    for combination in dict.fromkeys(record.combination for record in finished):
        levels = dict(combination)
        if levels["setup"] == SINGLE:
            continue
        own = [record for record in finished if record.combination == combination]
        pairs = _pairs(finished, "setup", SINGLE, levels["setup"])
        found.append(
            Saving(
                levels=levels,
                devices=own[0].devices,
                published=_published(records, own, levels),
                speedup=_estimate(pairs, _speed_of_epochs, "ratio", only=combination),
                quality=_quality(pairs, only=combination),
                also=_also_different([pair for pair in pairs if pair[1].combination == combination], "setup"),
            )
        )
    return found


def reference_level(factor: str, levels: Sequence[str]) -> str:
    """The level that the others are held against: one device, or the first that the plan names."""
    return SINGLE if factor == "setup" and SINGLE in levels else levels[0]


def pooled(blocks: Sequence[Sequence[float]], *, only: int | None = None) -> tuple[float, float | None]:
    """Mean of the blocks' means, or of the one block `only`, and half the width of its 95 % t interval.

    The variance within a block is taken to be the same in all, so that it has sum(n - 1) degrees of freedom; None where
    no block has two values.
    """
    means = [float(np.mean(block)) for block in blocks]
    chosen = range(len(blocks)) if only is None else [only]
    mean = float(np.mean([means[index] for index in chosen]))
    freedom = sum(len(block) - 1 for block in blocks)
    if not freedom:
        return mean, None
    squares = sum(float(np.square(np.subtract(block, np.mean(block))).sum()) for block in blocks)
    error = math.sqrt(squares / freedom * sum(1 / len(blocks[index]) for index in chosen)) / len(chosen)
    return mean, float(stats.t.ppf(0.5 + CONFIDENCE / 2, freedom)) * error


Combination = tuple[tuple[str, str], ...]
Pair = tuple[RunRecord, RunRecord]


def _pairs(records: Sequence[RunRecord], factor: str, reference: str, level: str) -> list[Pair]:
    """(reference, level) runs that agree in every other factor and in the seed."""

    def rest(record: RunRecord) -> tuple[object, ...]:
        return record.seed, *(value for key, value in record.levels.items() if key != factor)

    others = {rest(record): record for record in records if record.levels[factor] == reference}
    mine = [record for record in records if record.levels[factor] == level]
    return [(others[rest(record)], record) for record in mine if rest(record) in others]


def _measures(pairs: Sequence[Pair]) -> dict[str, Estimate]:
    speed = _estimate(pairs, lambda record: _value(record, SPEED), "ratio")
    return ({} if speed is None else {SPEED: speed}) | _quality(pairs)


def _quality(pairs: Sequence[Pair], *, only: Combination | None = None) -> dict[str, Estimate]:
    measures = {}
    for metric in QUALITY:
        scored = [pair for pair in pairs if all(record.figures.get(metric) is not None for record in pair)]
        estimate = _estimate(scored, partial(_value, measure=metric), "difference", only=only)
        if estimate is not None:
            measures[metric] = estimate
    return measures


def _estimate(
    pairs: Sequence[Pair], value: Callable[[RunRecord], float], kind: Kind, *, only: Combination | None = None
) -> Estimate | None:
    """The mean over all combinations, or of one of them; None where it has no pairs."""
    blocks: dict[Combination, list[float]] = {}
    for before, after in pairs:
        first, second = value(before), value(after)
        change = math.log(second / first) if kind == "ratio" else second - first
        blocks.setdefault(after.combination, []).append(change)
    if not blocks or (only is not None and only not in blocks):
        return None
    back: Callable[[float], float] = math.exp if kind == "ratio" else float
    mean, half = pooled(list(blocks.values()), only=None if only is None else list(blocks).index(only))
    mine = [pair for pair in pairs if only in (None, pair[1].combination)]
    means = [float(np.mean(block)) for which, block in blocks.items() if only in (None, which)]
    return Estimate(
        kind=kind,
        mean=back(mean),
        low=None if half is None else back(mean - half),
        high=None if half is None else back(mean + half),
        pairs=len(mine),
        combinations=len(means),
        seeds=len({after.seed for _, after in mine}),
        smallest=back(min(means)),
        largest=back(max(means)),
    )


def _speed_of_epochs(record: RunRecord) -> float:
    return 1.0 / _value(record, SECONDS)


def _value(record: RunRecord, measure: str) -> float:
    timings = record.timings
    assert timings is not None, "a run that is done has timings"
    if measure == SPEED:
        return timings.images_per_second
    if measure == SECONDS:
        return timings.seconds / timings.epochs
    interval = record.figures[measure]
    assert interval is not None, "asked for only where it was computed"
    return interval.mean


def _also_different(pairs: Sequence[Pair], factor: str) -> tuple[str, ...]:
    """Settings that differ within a pair though they are not the factor's."""
    names: dict[str, None] = {}
    for before, after in pairs:
        first, second = (_settings(record) for record in (before, after))
        names |= dict.fromkeys(key for key in first if first[key] != second.get(key) and key != SETTING_OF[factor])
    return tuple(names)


def _settings(record: RunRecord) -> Mapping[str, str]:
    return flatten(RunConfig.model_validate(record.config))


def _published(records: Sequence[RunRecord], own: Sequence[RunRecord], levels: Mapping[str, str]) -> float | None:
    first = {factor: next(iter(record.levels[factor] for record in records)) for factor in SETTING_OF}
    plain = {**first, "setup": SINGLE, "model": levels["model"], "noise": levels["noise"]}
    single = [record for record in done(records) if record.levels == plain]
    if not single:
        return None
    return 1 - _mean_seconds(own) / _mean_seconds(single)


def _mean_seconds(records: Sequence[RunRecord]) -> float:
    return float(np.mean([record.timings.seconds for record in records if record.timings is not None]))
