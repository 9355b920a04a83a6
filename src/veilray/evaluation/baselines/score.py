"""Classical methods on the images of a set: tuned on the validation images, computed on all cores, scored."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from veilray.evaluation.baselines.cache import Key, ScoreCache
from veilray.evaluation.baselines.cases import Case, case_key, load_case, spread
from veilray.evaluation.baselines.methods import Method, Strength, packages, smooth, take_off_mean, warm_up
from veilray.evaluation.baselines.tuning import TUNING_IMAGES, Tuned, tune
from veilray.evaluation.results import METRICS, ImageScore
from veilray.evaluation.scoring import score_images
from veilray.evaluation.watching import Advance, Show, show_nothing
from veilray.images.radiograph import FloatImage
from veilray.metrics.lpips import LPIPS
from veilray.training.data import TrainingImages
from veilray.training.sets import Rows


@dataclass(frozen=True, kw_only=True)
class Classical:
    """Which classical methods an evaluation is to score, and how."""

    methods: tuple[Method, ...]
    cache: Path | None = None
    """File of what has been computed already, on this machine; None keeps nothing."""
    workers: int = 1
    """Processes; 1 means this one."""
    tuning_images: int = TUNING_IMAGES


@dataclass(frozen=True, kw_only=True)
class ClassicalScores:
    """What classical methods reached on a set."""

    scores: tuple[ImageScore, ...]
    """Method by method, image by image."""
    seconds: dict[str, float]
    """Seconds an image, by method, in a process of one thread."""
    core_seconds: dict[str, float]
    """Seconds of one core an image, by method."""
    tuned: dict[str, Tuned]

    def record(self, images: TrainingImages) -> dict[str, Any]:
        """`evaluation/baselines.json`."""
        some = next(iter(self.tuned.values()))
        return {
            "schema_version": 1,
            "chosen_by": "highest mean PSNR, output clamped, over the tuning images",
            "tuned_on": "validation",
            "tuning_images": list(some.image_ids),
            "cohort_digest": images.data.digest,
            "noise": images.noise.model_dump(mode="json"),
            "methods": {name: one.record() for name, one in self.tuned.items()},
        }

    def notes(self) -> list[str]:
        """What a reader of the scores must know."""
        some = next(iter(self.tuned.values()))
        found = [
            f"Classical methods were told the noise's true mean and std; their strength was chosen on "
            f"{len(some.image_ids)} validation images (evaluation/baselines.json)."
        ]
        edge = [name for name, one in self.tuned.items() if one.at_edge]
        if edge:
            found.append(f"The strength of {', '.join(edge)} is at the edge of its grid: a better one may lie beyond.")
        return found


def score_classical(
    plan: Classical, images: TrainingImages, rows: Rows, *, lpips: LPIPS | None, show: Show = show_nothing
) -> ClassicalScores:
    """Tune the methods of a plan for the noise of `images`, and score them on the images of `rows`."""
    cache = ScoreCache(plan.cache)
    tuned = tune(plan.methods, images, cache=cache, workers=plan.workers, count=plan.tuning_images, show=show)
    work = [_Work(method, tuned[method.name].strength, row) for method in plan.methods for row in rows.tolist()]
    with show("classical methods", len(work)) as advance:
        _score_missing(work, images, cache, plan.workers, lpips, advance)
    found: dict[str, list[dict[str, Any]]] = {}
    for one in work:
        found.setdefault(one.method.name, []).append(cache.get(one.key(images, lpips=lpips)))
    return ClassicalScores(
        scores=tuple(_image_score(one, images, cache, lpips=lpips) for one in work),
        seconds={name: _mean(results, "seconds") for name, results in found.items()},
        core_seconds={name: _mean(results, "core_seconds") for name, results in found.items()},
        tuned=tuned,
    )


class _Work(NamedTuple):
    """One image to be denoised by one method."""

    method: Method
    strength: Strength
    row: int

    def key(self, images: TrainingImages, *, lpips: LPIPS | None) -> Key:
        """Everything that decides its scores and its seconds."""
        return {
            "what": "score",
            "method": self.method.name,
            "strength": self.strength,
            "packages": packages(self.method.smoother),
            "lpips": None if lpips is None else lpips.digest,
            "unclamped": images.config.evaluate.unclamped_psnr,
            **case_key(images, self.row),
        }


def _score_missing(
    work: Sequence[_Work],
    images: TrainingImages,
    cache: ScoreCache,
    workers: int,
    lpips: LPIPS | None,
    advance: Advance,
) -> None:
    """Fill the cache with the scores and seconds of each piece of work; the forms of one smoothing share it."""
    missing = [one for one in work if cache.get(one.key(images, lpips=lpips)) is None]
    advance(len(work) - len(missing))
    shared: dict[str, list[_Work]] = {}
    for one in missing:
        shared.setdefault(json.dumps([one.method.smoother, one.strength, one.row], sort_keys=True), []).append(one)
    items = (
        (tuple(one.method for one in several), several[0].strength, load_case(images, several[0].row))
        for several in shared.values()
    )
    for several, (case, estimates) in zip(shared.values(), spread(_restore, items, workers=workers), strict=True):
        for one, (estimate, seconds, core_seconds) in zip(several, estimates, strict=True):
            (score,) = score_images(
                one.method.name,
                torch.from_numpy(estimate)[None, None],
                torch.from_numpy(case.clean)[None, None],
                np.array([one.row], dtype=np.int64),
                images,
                lpips=lpips,
            )
            metrics = {name: getattr(score, name) for name in METRICS}  # the cache names neither image nor patient
            found = {"metrics": metrics, "seconds": seconds, "core_seconds": core_seconds}
            cache.put(one.key(images, lpips=lpips), found)
            advance(1)


def _image_score(work: _Work, images: TrainingImages, cache: ScoreCache, *, lpips: LPIPS | None) -> ImageScore:
    return ImageScore(
        image_id=images.image_id(work.row),
        patient_id=images.data.patient_id(work.row),
        method=work.method.name,
        **cache.get(work.key(images, lpips=lpips))["metrics"],
    )


_Estimate = tuple[FloatImage, float, float]
"""An estimate, with the seconds by the clock and the seconds of cores that its process used for it."""


def _restore(item: tuple[tuple[Method, ...], Strength, Case]) -> tuple[Case, list[_Estimate]]:
    """The estimates of methods that share a smoothing, whose seconds count for each of them."""
    methods, strength, case = item
    smoother = methods[0].smoother
    warm_up(smoother)
    wall, core = time.perf_counter(), time.process_time()
    smoothed = smooth(case.noisy, smoother=smoother, std=case.noise.std, strength=strength)
    wall, core = time.perf_counter() - wall, time.process_time() - core
    estimates = []
    for method in methods:
        own_wall, own_core = time.perf_counter(), time.process_time()
        estimate = take_off_mean(smoothed, naive=method.naive, noise=case.noise)
        own_wall, own_core = time.perf_counter() - own_wall, time.process_time() - own_core
        estimates.append((estimate, wall + own_wall, core + own_core))
    return case, estimates


def _mean(results: Sequence[dict[str, Any]], name: str) -> float:
    return float(np.mean([one[name] for one in results]))
