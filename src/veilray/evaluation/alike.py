"""Which runs can be compared: reading evaluated run folders, and refusing those that were not evaluated alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from veilray.errors import RunError, UsageError
from veilray.evaluation.comparison import Run
from veilray.evaluation.results import (
    MODEL,
    PER_IMAGE,
    SUMMARY,
    ImageScore,
    Summary,
    no_mean,
    read_scores,
    read_summary,
    read_tuning,
)
from veilray.evaluation.subject import Subject, subject_of_results
from veilray.files import sha256_file
from veilray.obfuscation.config import NoiseConfig
from veilray.training.run import RunFolder

NoiseKey = tuple[tuple[float, float], tuple[float, float], bool]


def read_runs(folders: Sequence[str | Path]) -> list[Run]:
    """Read evaluated run folders, by seed, then by name.

    Raises UsageError where there are none or they were not evaluated alike (split, cohort, images, noise draws,
    confidence), RunError where a folder is not an evaluated run.
    """
    if not folders:
        raise UsageError("nothing to compare; name one or more evaluated run folders")
    runs = sorted((_read(Path(folder)) for folder in folders), key=lambda run: (run.config.seed, str(run.folder)))
    _check_alike(runs)
    return runs


def noise_key(noise: NoiseConfig) -> NoiseKey:
    """What makes two test noises the same distribution."""
    # `fresh` concerns the training alone.
    return noise.std_range, noise.mean_range, noise.clip


def _read(path: Path) -> Run:
    summary = read_summary(path)
    subject = subject_of_results(path, summary)
    scores = read_scores(path)
    if MODEL not in summary.methods or not any(score.method == MODEL for score in scores):
        raise RunError(f"{path}: its evaluation has no scores of the trained model; evaluate the run again")
    _check_whole(path, summary, scores)
    _check_weights(path, summary, subject)
    return Run(
        folder=path,
        config=subject.config,
        summary=summary,
        scores=tuple(sorted(scores, key=lambda score: score.image_id)),
        tuning=read_tuning(path),
        curve=subject.curve,
        environment=subject.environment,
        source=subject.source,
    )


def _check_whole(path: Path, summary: Summary, scores: Sequence[ImageScore]) -> None:
    """Raise RunError where the two result files are not of one evaluation: their means or counts disagree."""
    for method, metrics in summary.methods.items():
        mine = [score for score in scores if score.method == method]
        psnr = metrics.get("psnr")
        mean = sum(score.psnr for score in mine) / max(len(mine), 1)
        if psnr is None:
            raise RunError(f"{path} cannot be reported on: {no_mean(summary)}")
        if len(mine) != summary.n_images or abs(mean - psnr.mean) > 1e-6 * max(1.0, abs(mean)):
            raise RunError(f"{path}: {PER_IMAGE} and {SUMMARY} disagree on {method}; evaluate the run again")


def _check_weights(path: Path, summary: Summary, subject: Subject) -> None:
    """Raise RunError where a run has been trained on since it was evaluated: its weights are no longer those."""
    if subject.kind != "run" or subject.folder is None or not summary.weights_sha256:
        return
    weights = RunFolder(subject.folder).best_weights
    if weights.is_file() and sha256_file(weights) != summary.weights_sha256:
        raise RunError(f"{path}: the run has been trained on since it was evaluated; evaluate it again")


def _check_alike(runs: Sequence[Run]) -> None:
    """Raise UsageError unless every run was evaluated on the same images in the same way."""
    facts: tuple[tuple[str, Callable[[Run], Any]], ...] = (
        ("split", lambda run: run.summary.split),
        ("cohort (digest)", lambda run: run.summary.cohort_digest),
        ("confidence level", lambda run: run.summary.confidence),
        ("number of bootstrap resamples", lambda run: run.summary.resamples),
        ("bootstrap seed", lambda run: run.summary.bootstrap_seed),
    )
    first = runs[0]
    for name, fact in facts:
        for run in runs[1:]:
            if fact(run) != fact(first):
                raise _unlike(first, run, f"{name}: {str(fact(first))[:12]} and {str(fact(run))[:12]}")
    by_noise: dict[NoiseKey, Run] = {}
    for run in runs:
        other = by_noise.setdefault(noise_key(run.summary.noise), run)
        if other.summary.test_noise_seed != run.summary.test_noise_seed:
            seeds = f"{other.summary.test_noise_seed} and {run.summary.test_noise_seed}"
            raise _unlike(other, run, f"test noise seed: {seeds}")
    expected = patients_of(first, MODEL)
    for run in runs:
        for method in run.summary.methods:
            if patients_of(run, method) != expected:
                raise _unlike(first, run, f"images ({method}: {_difference(patients_of(run, method), expected)})")


def _unlike(first: Run, second: Run, what: str) -> UsageError:
    return UsageError(
        f"{first.folder} and {second.folder} were not evaluated on the same {what}; evaluate them alike, then compare"
    )


def _difference(found: dict[str, str], expected: dict[str, str]) -> str:
    if len(found) != len(expected):
        return f"{len(expected)} and {len(found)} images"
    example = min(set(found.items()) ^ set(expected.items()))[0]
    return f"{example}, for example"


def patients_of(run: Run, method: str) -> dict[str, str]:
    """image -> patient of the images that a method was scored on; RunError where one was scored twice."""
    scores = scores_of(run, method)
    patients = {score.image_id: score.patient_id for score in scores}
    if len(patients) != len(scores):
        raise RunError(f"{run.folder}: an image was scored twice by {method}; evaluate the run again")
    return patients


def scores_of(run: Run, method: str) -> list[ImageScore]:
    """The scores of one method, by image."""
    return [score for score in run.scores if score.method == method]
