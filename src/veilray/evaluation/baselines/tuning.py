"""The strength of each classical method, chosen on validation images alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from veilray.evaluation.baselines.cache import Key, ScoreCache
from veilray.evaluation.baselines.cases import Case, case_key, decibels, load_case, spread, tuning_rows
from veilray.evaluation.baselines.methods import (
    Method,
    Smoother,
    Strength,
    at_edge,
    grid,
    packages,
    smooth,
    take_off_mean,
)
from veilray.evaluation.watching import Advance, Show, show_nothing
from veilray.training.data import TrainingImages

TUNING_IMAGES = 24
"""Validation images that strengths are chosen on, at most."""


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """The strength chosen for a method at one noise, and what it was chosen from."""

    method: Method
    strength: Strength
    tried: tuple[tuple[Strength, float], ...]
    """Every strength of the grid with its mean PSNR in dB over the tuning images."""
    image_ids: tuple[str, ...]
    """The tuning images, all of the validation set."""

    @property
    def at_edge(self) -> bool:
        """Whether the best of the grid lies at its edge, so that a better one may lie beyond."""
        return at_edge(self.method.smoother, self.strength)

    def record(self) -> dict[str, Any]:
        """What `baselines.json` says of it."""
        return {
            "smoother": self.method.smoother,
            "naive": self.method.naive,
            "strength": self.strength,
            "at_edge_of_grid": self.at_edge,
            "packages": packages(self.method.smoother),
            "grid": [{"strength": strength, "psnr": psnr} for strength, psnr in self.tried],
        }


def tune(
    methods: Sequence[Method],
    images: TrainingImages,
    *,
    cache: ScoreCache,
    workers: int = 1,
    count: int = TUNING_IMAGES,
    show: Show = show_nothing,
) -> dict[str, Tuned]:
    """Choose the strength of each method for the noise of `images`, by mean PSNR over `count` validation images.

    The test images are never read. Ties go to the strength that comes first in the grid.
    """
    rows = tuning_rows(images, count).tolist()
    smoothers = list(dict.fromkeys(method.smoother for method in methods))
    with show("tuning classical methods", len(smoothers) * len(rows)) as advance:
        _try_missing([(smoother, row) for smoother in smoothers for row in rows], images, cache, workers, advance)
    found = {smoother: _means(smoother, images, rows, cache) for smoother in smoothers}
    tuned = {}
    for method in methods:
        strengths, means = grid(method.smoother), found[method.smoother][int(method.naive)]
        tuned[method.name] = Tuned(
            method=method,
            strength=strengths[int(np.argmax(means))],
            tried=tuple(zip(strengths, means, strict=True)),
            image_ids=tuple(images.image_id(row) for row in rows),
        )
    return tuned


def _try_missing(
    work: Sequence[tuple[Smoother, int]], images: TrainingImages, cache: ScoreCache, workers: int, advance: Advance
) -> None:
    """Fill the cache with what each smoother reaches on each image."""
    missing = [(smoother, row) for smoother, row in work if cache.get(_key(smoother, images, row)) is None]
    advance(len(work) - len(missing))
    items = ((smoother, load_case(images, row)) for smoother, row in missing)
    for (smoother, row), scores in zip(missing, spread(_try_all, items, workers=workers), strict=True):
        cache.put(_key(smoother, images, row), scores)
        advance(1)


def _means(smoother: Smoother, images: TrainingImages, rows: Sequence[int], cache: ScoreCache) -> list[list[float]]:
    """Mean PSNR of each strength of the grid, through the mean map, then naively: 2 x len(grid)."""
    table = np.array([cache.get(_key(smoother, images, row)) for row in rows], dtype=np.float64)
    means: list[list[float]] = table.mean(axis=0).tolist()
    return means


def _try_all(item: tuple[Smoother, Case]) -> list[list[float]]:
    """PSNR of every strength on one image, in both forms, which share the smoothing."""
    smoother, case = item
    scores: list[list[float]] = [[], []]
    for strength in grid(smoother):
        smoothed = smooth(case.noisy, smoother=smoother, std=case.noise.std, strength=strength)
        for naive in (False, True):
            estimate = take_off_mean(smoothed, naive=naive, noise=case.noise)
            scores[int(naive)].append(decibels(estimate, case.clean))
    return scores


def _key(smoother: Smoother, images: TrainingImages, row: int) -> Key:
    return {
        "what": "tuning",
        "smoother": smoother,
        "grid": list(grid(smoother)),
        "packages": packages(smoother),
        **case_key(images, row),
    }
