"""Compare evaluated runs: join seeds into arms, average their scores, and test the paired differences."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import numpy as np

from veilray.errors import UsageError
from veilray.evaluation.alike import NoiseKey, noise_key, patients_of, read_runs, scores_of
from veilray.evaluation.baselines.methods import METHODS
from veilray.evaluation.comparison import HIGHER_IS_BETTER, Arm, Comparison, Level, Pair, Role, Run, Scores
from veilray.evaluation.labels import arm_labels, differing, noise_labels, settings_of, setup_of
from veilray.evaluation.results import METRICS, MODEL, NOISY
from veilray.metrics.interval import Interval
from veilray.metrics.statistics import clustered_bootstrap, holm, paired_comparison

LOWEST = 10
"""Images with the lowest PSNR that a report names."""

_TUNING = ("at different strengths", "after tuning on different images")
"""How a classical method may have been scored, by place in `Run.tuning`."""


@dataclass(frozen=True, kw_only=True)
class _Images:
    """The test images in their one order, and how means over them are taken."""

    image_ids: tuple[str, ...]
    patient_ids: tuple[str, ...]
    confidence: float
    resamples: int
    bootstrap_seed: int

    def mean(self, values: Scores) -> Interval:
        """(n_images,) -> mean with its interval, clustered by patient."""
        return clustered_bootstrap(
            values, self.patient_ids, resamples=self.resamples, seed=self.bootstrap_seed, confidence=self.confidence
        )


def compare(folders: Sequence[str | Path]) -> Comparison:
    """Read evaluated run folders and compare them; the order of the folders does not matter.

    Runs that differ in their seed only are one arm. Raises UsageError where the runs were not evaluated alike (split,
    cohort, images, noise draws, confidence) or where one is given twice, RunError where a folder is no evaluated run.
    """
    runs = read_runs(folders)
    images = _images(runs[0])
    labels, settings = _label(runs)
    levels = _levels(runs, labels, settings, images)
    summary = runs[0].summary
    return Comparison(
        levels=_judged(levels),
        split=summary.split,
        cohort=summary.cohort,
        cohort_digest=summary.cohort_digest,
        image_ids=images.image_ids,
        patient_ids=images.patient_ids,
        confidence=images.confidence,
        resamples=images.resamples,
        bootstrap_seed=images.bootstrap_seed,
        notes=(*sorted({note for run in runs for note in run.summary.notes}), *_tuned_apart(runs, levels)),
    )


def panel_images(comparison: Comparison) -> list[tuple[str, Role]]:
    """The median, the best and the worst test image by mean PSNR over all trained arms; fewer where there are fewer.

    After them, by rising PSNR and with the role `low`, those that make up the ten worst images with the worst.
    """
    scores = [arm.scores["psnr"] for level in comparison.levels for arm in level.models]
    means = np.mean([values for values in scores if values is not None], axis=0)
    order = sorted(range(len(means)), key=lambda index: (means[index], comparison.image_ids[index]))
    picks: dict[int, Role] = {}
    for index, role in ((order[(len(order) - 1) // 2], "median"), (order[-1], "best"), (order[0], "worst")):
        picks.setdefault(index, role)  # type: ignore[arg-type]
    for index in order[:LOWEST]:
        picks.setdefault(index, "low")
    return [(comparison.image_ids[index], role) for index, role in picks.items()]


def _images(run: Run) -> _Images:
    patients = patients_of(run, MODEL)
    return _Images(
        image_ids=tuple(patients),
        patient_ids=tuple(patients.values()),
        confidence=run.summary.confidence,
        resamples=run.summary.resamples,
        bootstrap_seed=run.summary.bootstrap_seed,
    )


def _label(runs: Sequence[Run]) -> tuple[dict[Path, str], dict[str, dict[str, str]]]:
    """The arm of every run by its folder, and the settings of every arm; UsageError where a run was given twice."""
    settings = {run.folder: settings_of(run.config, run.summary, run.environment) for run in runs}
    different: list[dict[str, str]] = []
    for value in settings.values():
        if value not in different:
            different.append(value)
    names = arm_labels(different)
    labels = {folder: names[different.index(value)] for folder, value in settings.items()}
    seen: dict[tuple[str, NoiseKey, int], Run] = {}
    for run in runs:
        same = seen.setdefault((labels[run.folder], noise_key(run.summary.noise), run.config.seed), run)
        if same is not run:
            raise UsageError(
                f"{same.folder} and {run.folder} have the same configuration and seed, so they are no two samples; "
                "leave one out"
            )
    return labels, dict(zip(names, different, strict=True))


def _levels(
    runs: Sequence[Run], labels: dict[Path, str], settings: dict[str, dict[str, str]], images: _Images
) -> list[Level]:
    noises = {noise_key(run.summary.noise): run.summary.noise for run in runs}
    keys = sorted(noises)
    levels = []
    for key, name in zip(keys, noise_labels([noises[key] for key in keys]), strict=True):
        here = [run for run in runs if noise_key(run.summary.noise) == key]
        present = {labels[run.folder] for run in here}
        order = sorted(present, key=lambda label: (settings[label]["model.name"], label))
        models = [
            _model_arm(label, settings[label], [run for run in here if labels[run.folder] == label], images)
            for label in order
        ]
        arms = (*_input_arms(here, images), *models)
        noise, seed = here[0].summary.noise, here[0].summary.test_noise_seed
        levels.append(Level(label=name, noise=noise, test_noise_seed=seed, arms=arms, pairs=_pairs(arms, images)))
    return levels


def _model_arm(label: str, settings: dict[str, str], runs: list[Run], images: _Images) -> Arm:
    scores = {metric: _seed_average(runs, MODEL, metric) for metric in METRICS}
    seconds = [run.curve[-1].seconds for run in runs if run.curve]
    return Arm(
        label=label,
        kind="model",
        setup=setup_of(settings),
        runs=tuple(runs),
        settings=settings,
        scores=scores,
        metrics=_means(runs, MODEL, scores, images),
        training_seconds=float(np.mean(seconds)) if len(seconds) == len(runs) else None,
        core_seconds=_core_seconds(runs, MODEL),
    )


def _input_arms(runs: Sequence[Run], images: _Images) -> list[Arm]:
    """The noisy input and the classical methods: no training, so that the first run that scored one speaks for all."""
    arms = []
    methods = {method for run in runs for method in run.summary.methods} - {MODEL}
    for method in sorted(methods, key=lambda name: (name != NOISY, name)):
        speaker = [_speaker(runs, method)]
        scores = {metric: _seed_average(speaker, method, metric) for metric in METRICS}
        arms.append(
            Arm(
                label=_title(method),
                kind="noisy" if method == NOISY else "classical",
                setup="",
                runs=(),
                settings={},
                scores=scores,
                metrics=_means(speaker, method, scores, images),
                training_seconds=None,
                core_seconds=_core_seconds(speaker, method),
            )
        )
    return arms


def _speaker(runs: Sequence[Run], method: str) -> Run:
    return next(run for run in runs if method in run.summary.methods)


def _tuned_apart(runs: Sequence[Run], levels: Sequence[Level]) -> list[str]:
    """Notes on classical methods that evaluations at one level tuned in different ways, of which one is shown."""
    notes = []
    for level in levels:
        here = [run for run in runs if noise_key(run.summary.noise) == noise_key(level.noise)]
        for method in sorted({method for run in here for method in run.summary.methods} & set(METHODS)):
            tuned = [run.tuning[method] for run in here if method in run.tuning]
            apart = [what for index, what in enumerate(_TUNING) if any(one[index] != tuned[0][index] for one in tuned)]
            if apart:
                notes.append(
                    f"{_title(method)} was scored {' and '.join(apart)} in these evaluations at {level.label}; "
                    f"the scores of {_speaker(here, method).folder} are shown."
                )
    return notes


def _title(method: str) -> str:
    if method == NOISY:
        return "Noisy input"
    return METHODS[method].title if method in METHODS else method


def _core_seconds(runs: Sequence[Run], method: str) -> float | None:
    found = [run.summary.core_seconds_per_image.get(method) for run in runs]
    known = [value for value in found if value is not None]
    return float(np.mean(known)) if len(known) == len(runs) else None


def _seed_average(runs: Sequence[Run], method: str, metric: str) -> Scores | None:
    columns = [[getattr(score, metric) for score in scores_of(run, method)] for run in runs]
    if any(value is None for column in columns for value in column):
        return None
    return np.mean(np.array(columns, dtype=np.float64), axis=0)  # type: ignore[no-any-return]


def _means(
    runs: Sequence[Run], method: str, scores: dict[str, Scores | None], images: _Images
) -> dict[str, Interval | None]:
    if len(runs) == 1:
        # The figures of the result file themselves, so that report and file agree to the last digit.
        return {metric: runs[0].summary.methods[method].get(metric) for metric in METRICS}
    return {metric: None if values is None else images.mean(values) for metric, values in scores.items()}


def _pairs(arms: Iterable[Arm], images: _Images) -> tuple[Pair, ...]:
    """Paired differences of all models with each other and with classical methods, with p-values uncorrected.

    Not with the noisy input, which any method beats, and not of two classical methods, which nobody asks about here and
    which would make the correction stricter. Models come first, so that a difference reads as what the model gained.
    """
    pairs = []
    compared = sorted((arm for arm in arms if arm.kind != "noisy"), key=lambda arm: arm.kind != "model")
    for first, second in combinations(compared, 2):
        if first.kind != "model":
            continue
        for metric in METRICS:
            mine, other = first.scores[metric], second.scores[metric]
            if mine is None or other is None:
                continue
            result = paired_comparison(
                mine,
                other,
                images.patient_ids,
                higher_is_better=HIGHER_IS_BETTER[metric],
                resamples=images.resamples,
                seed=images.bootstrap_seed,
                confidence=images.confidence,
            )
            pairs.append(
                Pair(
                    first=first.label,
                    second=second.label,
                    metric=metric,
                    difference=result.difference,
                    p_value=result.p_value,
                    p_holm=result.p_value,
                    share_won=result.share_won,
                    settings=differing(first.settings, second.settings) if first.runs and second.runs else (),
                    per_image=mine - other,
                )
            )
    return tuple(pairs)


def _judged(levels: Sequence[Level]) -> tuple[Level, ...]:
    """The levels with Holm's correction over every comparison of the report, and the best arms marked."""
    corrected = iter(holm([pair.p_value for level in levels for pair in level.pairs]))
    judged = []
    for level in levels:
        pairs = tuple(replace(pair, p_holm=float(next(corrected))) for pair in level.pairs)
        judged.append(
            replace(level, pairs=pairs, arms=tuple(replace(arm, best=_best(arm, pairs)) for arm in level.arms))
        )
    return tuple(judged)


def _best(arm: Arm, pairs: Sequence[Pair]) -> frozenset[str]:
    """The metrics in which a model beats every other method, each difference significant."""
    best = set()
    if arm.kind != "model":
        return frozenset()
    for metric in METRICS:
        mine = [pair for pair in pairs if pair.metric == metric and arm.label in (pair.first, pair.second)]
        better = 1.0 if HIGHER_IS_BETTER[metric] else -1.0
        if mine and all(
            pair.significant and better * pair.difference.mean * (1 if pair.first == arm.label else -1) > 0
            for pair in mine
        ):
            best.add(metric)
    return frozenset(best)
