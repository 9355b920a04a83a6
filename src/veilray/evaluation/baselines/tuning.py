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
    Value,
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
    """Every strength that was tried, as the grid has them, with its mean PSNR in dB over the tuning images."""
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

    A search up the hill for every combination of other settings: its middle factor is tried, then, round by round, the
    factors next to its best one for each form, until that is better than both. The test images are never read. Ties go
    to the strength that comes first in the grid.
    """
    rows = tuning_rows(images, count).tolist()
    smoothers = list(dict.fromkeys(method.smoother for method in methods))
    forms = {
        smoother: sorted({int(one.naive) for one in methods if one.smoother == smoother}) for smoother in smoothers
    }
    found: dict[Smoother, dict[int, list[float]]] = {smoother: {} for smoother in smoothers}
    wanted = {smoother: [_middle(family) for family in families(smoother)] for smoother in smoothers}
    while any(wanted.values()):
        pairs = [(smoother, number) for smoother, numbers in wanted.items() for number in numbers]
        work = [(smoother, grid(smoother)[number], row) for smoother, number in pairs for row in rows]
        with show("tuning classical methods", len(work)) as advance:
            _try_missing(work, images, cache, workers, advance)
        for smoother, number in pairs:
            found[smoother][number] = _means(smoother, grid(smoother)[number], images, rows, cache)
        wanted = {one: sorted(_next(one, found[one], forms[one]) - found[one].keys()) for one in smoothers}
    image_ids = tuple(images.image_id(row) for row in rows)
    return {method.name: _tuned(method, found[method.smoother], image_ids) for method in methods}


def families(smoother: Smoother) -> list[list[int]]:
    """Numbers in the grid of the strengths that share all but the factor, by rising factor."""
    by_others: dict[tuple[tuple[str, Value], ...], list[int]] = {}
    for number, strength in enumerate(grid(smoother)):
        others = tuple(sorted((key, value) for key, value in strength.items() if key != "factor"))
        by_others.setdefault(others, []).append(number)
    return [sorted(family, key=lambda number: float(grid(smoother)[number]["factor"])) for family in by_others.values()]


def _middle(family: Sequence[int]) -> int:
    return family[len(family) // 2]


def _next(smoother: Smoother, found: dict[int, list[float]], forms: Sequence[int]) -> set[int]:
    """In each family, the strengths on either side of the best of each form."""
    near: set[int] = set()
    for family in families(smoother):
        tried = {number: found[number] for number in family if number in found}
        for form in forms:
            place = family.index(_best(tried, form))
            near |= set(family[max(0, place - 1) : place + 2])
    return near


def _best(found: dict[int, list[float]], form: int) -> int:
    return max(sorted(found), key=lambda number: found[number][form])


def _tuned(method: Method, found: dict[int, list[float]], image_ids: tuple[str, ...]) -> Tuned:
    form, strengths = int(method.naive), grid(method.smoother)
    return Tuned(
        method=method,
        strength=strengths[_best(found, form)],
        tried=tuple((strengths[number], found[number][form]) for number in sorted(found)),
        image_ids=image_ids,
    )


def _try_missing(
    work: Sequence[tuple[Smoother, Strength, int]],
    images: TrainingImages,
    cache: ScoreCache,
    workers: int,
    advance: Advance,
) -> None:
    """Fill the cache with what each strength of each smoother reaches on each image."""
    missing = [one for one in work if cache.get(_key(*one, images)) is None]
    advance(len(work) - len(missing))
    items = ((smoother, strength, load_case(images, row)) for smoother, strength, row in missing)
    for one, scores in zip(missing, spread(_try, items, workers=workers), strict=True):
        cache.put(_key(*one, images), scores)
        advance(1)


def _means(
    smoother: Smoother, strength: Strength, images: TrainingImages, rows: Sequence[int], cache: ScoreCache
) -> list[float]:
    """Mean PSNR of a strength through the mean map, and naively."""
    table = np.array([cache.get(_key(smoother, strength, row, images)) for row in rows], dtype=np.float64)
    means: list[float] = table.mean(axis=0).tolist()
    return means


def _try(item: tuple[Smoother, Strength, Case]) -> list[float]:
    """PSNR of one strength on one image through the mean map and naively, which share the smoothing."""
    smoother, strength, case = item
    smoothed = smooth(case.noisy, smoother=smoother, std=case.noise.std, strength=strength)
    return [decibels(take_off_mean(smoothed, naive=naive, noise=case.noise), case.clean) for naive in (False, True)]


def _key(smoother: Smoother, strength: Strength, row: int, images: TrainingImages) -> Key:
    return {
        "what": "tuning",
        "smoother": smoother,
        "strength": strength,
        "packages": packages(smoother),
        **case_key(images, row),
    }
