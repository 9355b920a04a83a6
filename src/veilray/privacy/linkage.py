"""Same-image linkage: who holds the originals finds the one that a released image was made from."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from veilray.images.radiograph import FloatImage
from veilray.privacy.data import AuditData, Budget, Progress, Variant
from veilray.privacy.intervals import over_patients
from veilray.privacy.matched_filter import (
    clamped_moments,
    gallery_success,
    log_pair_error,
    mean_images,
    squared_distances,
)
from veilray.privacy.results import AttackResult, Skipped

_Float = TypeVar("_Float", bound="np.floating[Any]")

NAME = "linkage"
ATTACKER = "holder of the originals, matched filter"
SIDES = (2, 4, 8, 16, 32, 64)
"""Sides of the central patches for which linkage is measured as well, in pixels."""
CHECK_GALLERY = 24
"""Images in each gallery of the check against the closed form, at most."""

_BLOCK = 64
_PROBES_AT_ONCE = 512
_MOST_PROBES = {"quick": 96, "default": 400, "full": 100_000}
_CHECKED = {"quick": 96, "default": 600, "full": 1200}
_WANTED = 0.75
_TRIED = (2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32, 48, 64)
_FEWEST = 3
_BOUNDED = 16


def run(
    data: AuditData, variants: Sequence[Variant], *, budget: Budget, seeds: Sequence[int], progress: Progress
) -> list[AttackResult | Skipped]:
    """Link each variant's images to the originals: whole images, small central patches, and against the closed form."""
    if len(data) < 2:
        return [Skipped(attack=NAME, reason="there is one image alone: nothing to confuse it with")]
    found: list[AttackResult | Skipped] = []
    for variant in variants:
        rows = _probes(data, variant, most=_MOST_PROBES[budget.effort], seed=seeds[0])
        if not len(rows):
            found.append(Skipped(attack=NAME, variant=variant.name, reason="it has none of the images"))
            continue
        progress("whole images")
        found.append(_whole(data, variant, rows))
        progress("patches")
        found.append(_patches(data, variant, rows))
        if variant.mixed:
            reason = "the closed form was not compared: the level of noise differs from image to image"
            found.append(Skipped(attack=NAME, variant=variant.name, reason=reason))
        elif variant.is_noise:
            progress("against the closed form")
            found.append(_check(data, variant, most=_CHECKED[budget.effort], seed=seeds[0]))
    return found


def _whole(data: AuditData, variant: Variant, rows: npt.NDArray[np.int64]) -> AttackResult:
    wins = np.concatenate(
        [
            _nearest(data, variant, block) == block
            for block in np.split(rows, range(_PROBES_AT_ONCE, len(rows), _PROBES_AT_ONCE))
        ]
    )
    bound, notes = _bound(data, variant, rows[:_BOUNDED]) if _has_theory(variant) else (None, ())
    value, low, high = over_patients(wins.astype(np.float64), _owners(data, rows), share=True)
    return AttackResult(
        attack=NAME,
        attacker=ATTACKER,
        variant=variant.name,
        metric="top_1",
        value=value,
        low=low,
        high=high,
        chance=1.0 / len(data),
        predicted=bound,
        n_images=len(rows),
        n_patients=len(set(_owners(data, rows).tolist())),
        notes=(f"gallery of {len(data):,} originals", *notes),
    )


def _has_theory(variant: Variant) -> bool:
    return variant.is_noise and not variant.mixed


def _nearest(data: AuditData, variant: Variant, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The original that the filter takes for each of the images, (n,); the gallery passes by in blocks."""
    probes = variant.draw(rows, 0).reshape(len(rows), -1)
    distances = [
        squared_distances(probes, _as_seen(data.clean(block), variant).reshape(len(block), -1))
        for block in np.split(np.arange(len(data)), range(_BLOCK, len(data), _BLOCK))
    ]
    nearest: npt.NDArray[np.int64] = np.argmin(np.concatenate(distances, axis=1), axis=1)
    return nearest


def _as_seen(images: FloatImage, variant: Variant) -> FloatImage:
    """What noisy images of these originals are on average; the originals themselves where there is no noise to see."""
    if not variant.is_noise:
        return images
    return mean_images(images, mean=variant.mean, std=variant.std, clip=variant.clip)


def _bound(data: AuditData, variant: Variant, rows: npt.NDArray[np.int64]) -> tuple[float, tuple[str, ...]]:
    """The union bound of the success, averaged over some images, and what the closest pair says."""
    originals = data.clean(rows).reshape(len(rows), -1)
    true = _as_seen(originals, variant)
    variances = [_variances(original, variant) for original in originals]
    lost, worst = np.zeros(len(rows)), -math.inf
    for block in np.split(np.arange(len(data)), range(_BLOCK, len(data), _BLOCK)):
        seen = _as_seen(data.clean(block), variant).reshape(len(block), -1)
        for place, row in enumerate(rows.tolist()):
            others = block != row
            if others.any():
                errors = log_pair_error(seen[others], true[place], variances[place])
                lost[place] += float(np.exp(errors).sum())
                worst = max(worst, float(errors.max()))
    chance = "1/2" if worst > math.log(0.49) else "0" if worst == -math.inf else f"10^{worst / math.log(10.0):.0f}"
    return float(np.maximum(0.0, 1.0 - lost).mean()), (
        f"predicted: at least this, by the union bound over the gallery, for {len(rows)} of the images",
        f"of those, the closest pair is confused with a predicted chance of {chance}",
    )


def _variances(original: FloatImage, variant: Variant) -> npt.NDArray[np.float64]:
    x = original.astype(np.float64)
    return clamped_moments(x, mean=variant.mean, std=variant.std, clip=variant.clip)[1]


def _patches(data: AuditData, variant: Variant, rows: npt.NDArray[np.int64]) -> AttackResult:
    """Success from a central patch alone, by its side; the value is that of 16 x 16 pixels or the largest that fits."""
    sides = [side for side in SIDES if side <= min(data.size)] or [min(data.size)]
    shown = max(side for side in sides if side <= 16) if sides[0] <= 16 else sides[0]
    originals = np.concatenate([_centre(block, max(sides)) for block in _in_blocks(data)])
    probes = np.concatenate(
        [_centre(variant.draw(block, 0), max(sides)) for block in np.split(rows, range(_BLOCK, len(rows), _BLOCK))]
    )
    shares = {}
    for side in sides:
        gallery = _as_seen(_centre(originals, side), variant).reshape(len(originals), -1)
        distances = squared_distances(_centre(probes, side).reshape(len(probes), -1), gallery)
        # Patches that look the same, such as two wholly black ones, leave a guess among them.
        own = distances[np.arange(len(rows)), rows]
        tied = np.isclose(distances, own[:, None], rtol=0.0, atol=1e-9)
        wins = np.where(own <= distances.min(axis=1) + 1e-9, 1.0 / tied.sum(axis=1), 0.0)
        shares[side] = over_patients(wins, _owners(data, rows), share=True)
    value, low, high = shares[shown]
    return AttackResult(
        attack=NAME,
        attacker=ATTACKER,
        variant=variant.name,
        metric=f"top_1_patch_{shown}",
        value=value,
        low=low,
        high=high,
        chance=1.0 / len(data),
        n_images=len(rows),
        n_patients=len(set(_owners(data, rows).tolist())),
        notes=(f"from the central {shown} x {shown} pixels alone; curve: success by the side of the patch",),
        curve=tuple((float(side), share[0]) for side, share in shares.items()),
    )


@dataclass(frozen=True, kw_only=True)
class CheckedLinkage:
    """Linkage over many small galleries, measured and predicted."""

    side: int
    """Of the central patch, in pixels."""
    wins: npt.NDArray[np.float64]
    """(n,): the share of the draws in which each probe was found."""
    predicted: npt.NDArray[np.float64]
    """(n,): its chance by the closed form."""
    rows: npt.NDArray[np.int64]
    """(n,): the probes."""
    repeats: int
    """Draws of the noise."""
    gallery: int
    """Images in a gallery."""

    @property
    def deviation(self) -> float:
        """Measured minus predicted, in standard deviations of what the noise alone makes of it."""
        spread = math.sqrt(float((self.predicted * (1.0 - self.predicted)).sum()) / self.repeats)
        difference = float((self.wins - self.predicted).sum())
        return difference / spread if spread else (0.0 if difference == 0.0 else math.copysign(math.inf, difference))


def check_closed_form(data: AuditData, variant: Variant, *, most: int, seed: int) -> CheckedLinkage | None:
    """Link central patches within small galleries of different patients, and predict each probe's chance.

    The side is the least at which the predicted success reaches 0.75, so that the comparison is not trivial. None where
    there are too few patients for a gallery of three.
    """
    galleries = _galleries(data, variant, most=most, seed=seed)
    if not galleries:
        return None
    rows = np.concatenate(galleries)
    widest = min(64, *data.size)
    originals = _centre(_gather(data, rows), widest).astype(np.float64)
    side = _telling_side(originals[: len(galleries[0])], variant, widest)
    # A release exists once; noise made for the audit can be drawn again until there is enough to compare.
    repeats = 1 if variant.draws is not None else max(1, most // len(rows))
    noisy = np.stack([_noisy_patches(variant, rows, side, number) for number in range(repeats)])
    wins, predicted, begin = [], [], 0
    for members in galleries:
        part = slice(begin, begin + len(members))
        begin += len(members)
        patches = _centre(originals[part], side).reshape(len(members), -1)
        seen, variances = clamped_moments(patches, mean=variant.mean, std=variant.std, clip=variant.clip)
        distances = ((noisy[:, part, None] - seen) ** 2).sum(axis=-1)
        wins.append(distances.argmin(axis=-1) == np.arange(len(members)))
        predicted += [gallery_success(seen, variances[place], place) for place in range(len(members))]
    found = np.concatenate(wins, axis=1).mean(axis=0)
    chances = np.array(predicted)
    return CheckedLinkage(
        side=side, wins=found, predicted=chances, rows=rows, repeats=repeats, gallery=len(galleries[0])
    )


def _noisy_patches(variant: Variant, rows: npt.NDArray[np.int64], side: int, number: int) -> npt.NDArray[np.float64]:
    blocks = np.split(rows, range(_BLOCK, len(rows), _BLOCK))
    patches = [_centre(variant.draw(block, number), side).reshape(len(block), -1) for block in blocks]
    return np.concatenate(patches).astype(np.float64)


def _check(data: AuditData, variant: Variant, *, most: int, seed: int) -> AttackResult | Skipped:
    checked = check_closed_form(data, variant, most=most, seed=seed)
    if checked is None:
        reason = "the closed form is compared over galleries of three patients or more"
        return Skipped(attack=NAME, variant=variant.name, reason=reason)
    value, low, high = over_patients(checked.wins, _owners(data, checked.rows), share=True)
    return AttackResult(
        attack=NAME,
        attacker=ATTACKER,
        variant=variant.name,
        metric="top_1_checked",
        value=value,
        low=low,
        high=high,
        chance=1.0 / checked.gallery,
        predicted=float(checked.predicted.mean()),
        n_images=len(checked.rows),
        n_patients=len(checked.rows),
        notes=(
            f"made hard on purpose, to compare with the closed form: the central {checked.side} x {checked.side} "
            f"pixels, in galleries of {checked.gallery} patients, drawn {checked.repeats} times",
            f"measured minus predicted: {checked.deviation:+.1f} standard deviations of what the noise makes of it",
        ),
    )


def _telling_side(originals: npt.NDArray[np.float64], variant: Variant, widest: int) -> int:
    """The least side of the patch whose predicted success reaches the wanted one, by a few images of one gallery."""

    def reaches(side: int) -> bool:
        patches = _centre(originals, side).reshape(len(originals), -1)
        seen, variances = clamped_moments(patches, mean=variant.mean, std=variant.std, clip=variant.clip)
        chances = [gallery_success(seen, variances[place], place) for place in range(0, len(seen), 4)]
        return float(np.mean(chances)) >= _WANTED

    sides = [side for side in _TRIED if side <= widest] or [widest]
    return sides[min(bisect.bisect_left(sides, True, key=reaches), len(sides) - 1)]


def _galleries(data: AuditData, variant: Variant, *, most: int, seed: int) -> list[npt.NDArray[np.int64]]:
    """Rows of different patients, in galleries of equal size as far as there are patients."""
    rows = variant.available(data)
    generator = np.random.default_rng(seed)
    first = {data.patient_ids[row]: row for row in generator.permutation(rows).tolist()}
    # Images that look the same in the middle, such as copies, have no closed form: each gallery keeps one of them.
    chosen = np.array(sorted(first.values()), dtype=np.int64)
    chosen = generator.permutation(chosen)[:most]
    if len(chosen) < _FEWEST:
        return []
    size = len(chosen) // -(-len(chosen) // CHECK_GALLERY)
    return [chosen[begin : begin + size] for begin in range(0, len(chosen) - size + 1, size)]


def _probes(data: AuditData, variant: Variant, *, most: int, seed: int) -> npt.NDArray[np.int64]:
    """Rows to attack, ascending: patient after patient in a drawn order, until there are enough."""
    rows = variant.available(data)
    if len(rows) <= most:
        return rows
    generator = np.random.default_rng(seed)
    return np.sort(generator.permutation(rows)[:most])


def _owners(data: AuditData, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.str_]:
    return np.array([data.patient_ids[row] for row in rows.tolist()])


def _in_blocks(data: AuditData) -> list[FloatImage]:
    return [data.clean(block) for block in np.split(np.arange(len(data)), range(_BLOCK, len(data), _BLOCK))]


def _gather(data: AuditData, rows: npt.NDArray[np.int64]) -> FloatImage:
    return np.concatenate([data.clean(block) for block in np.split(rows, range(_BLOCK, len(rows), _BLOCK))])


def _centre(images: npt.NDArray[_Float], side: int) -> npt.NDArray[_Float]:
    top, left = (images.shape[axis] // 2 - side // 2 for axis in (1, 2))
    return images[:, top : top + side, left : left + side]
