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
from veilray.privacy.catalogue import LINKAGE, MATCHED_FILTER, OF_PATCH
from veilray.privacy.data import AuditData, Progress, Variant, drawn_numbers, drawn_seeds, drawn_words
from veilray.privacy.extent import Extent
from veilray.privacy.intervals import over_patients
from veilray.privacy.matched_filter import (
    clamped_moments,
    gallery_success,
    log_pair_error,
    mean_images,
    squared_distances,
)
from veilray.privacy.pairs import whole_patients
from veilray.privacy.results import AttackResult, Skipped

_Float = TypeVar("_Float", bound="np.floating[Any]")

SIDES = (2, 4, 8, 16, 32, 64)
"""Sides of the central patches for which linkage is measured as well, in pixels."""
CHECK_GALLERY = 24
"""Images in each gallery of the check against the closed form, at most."""

_BLOCK = 64
_PROBES_AT_ONCE = 512
_WANTED = 0.75
_TELLING = (0.6, 0.95)
"""Predicted success between which the comparison says something."""
_WIDEST = 64
_TELLERS = 6
_FEWEST = 3
_BOUNDED = 16


def run(
    data: AuditData, variant: Variant, *, extent: Extent, seeds: Sequence[int], progress: Progress
) -> list[AttackResult | Skipped]:
    """Link a variant's images to the originals: whole images, small central patches, and against the closed form.

    Noise that is made for the audit is drawn anew for each seed; a release has one draw.
    """
    if len(data) < 2:
        return [Skipped(attack=LINKAGE, reason="there is one image alone: nothing to confuse it with")]
    rows = whole_patients(variant.available(data), data.patient_ids, most=extent.linked, seed=seeds[0])
    if not len(rows):
        return [Skipped(attack=LINKAGE, variant=variant.name, reason="it has none of the images")]
    progress("whole images")
    found: list[AttackResult | Skipped] = [_whole(data, variant, rows, seeds)]
    progress("patches")
    found.append(_patches(data, variant, rows, seeds))
    if variant.mixed:
        reason = "the closed form was not compared: the level of noise differs from image to image"
        found.append(Skipped(attack=LINKAGE, variant=variant.name, reason=reason))
    elif variant.is_noise:
        progress("against the closed form")
        found.append(_check(data, variant, most=extent.checked, seeds=seeds))
    return found


def _whole(data: AuditData, variant: Variant, rows: npt.NDArray[np.int64], seeds: Sequence[int]) -> AttackResult:
    wins = np.zeros(len(rows))
    numbers = drawn_numbers(variant, seeds)
    for number in numbers:
        blocks = np.split(rows, range(_PROBES_AT_ONCE, len(rows), _PROBES_AT_ONCE))
        wins += np.concatenate([_nearest(data, variant, block, number) == block for block in blocks])
    bound, notes = _bound(data, variant, _sample(rows, seed=seeds[0])) if _has_theory(variant) else (None, ())
    value, low, high = over_patients(wins / len(numbers), _owners(data, rows), share=True)
    return AttackResult(
        attack=LINKAGE,
        attacker=MATCHED_FILTER,
        variant=variant.name,
        metric="top_1",
        unit="share",
        value=value,
        low=low,
        high=high,
        chance=1.0 / len(data),
        predicted=bound,
        predicted_at_least=bound is not None,
        n_images=len(rows),
        n_patients=len(set(_owners(data, rows).tolist())),
        seeds=drawn_seeds(variant, seeds),
        notes=(f"gallery of {len(data):,} originals", *drawn_words(variant, numbers), *notes),
    )


def _sample(rows: npt.NDArray[np.int64], *, seed: int) -> npt.NDArray[np.int64]:
    """Some of the rows at random, for which the bound is computed."""
    return np.sort(np.random.default_rng(seed).permutation(rows)[:_BOUNDED])


def _has_theory(variant: Variant) -> bool:
    return variant.is_noise and not variant.mixed


def _nearest(data: AuditData, variant: Variant, rows: npt.NDArray[np.int64], number: int) -> npt.NDArray[np.int64]:
    """The original that the filter takes for each of the images, (n,); the gallery passes by in blocks."""
    probes = variant.draw(rows, number).reshape(len(rows), -1)
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
        f"predicted by the union bound over the gallery, for {len(rows)} of the images",
        f"of those, the closest pair is confused with a predicted chance of {chance}",
    )


def _variances(original: FloatImage, variant: Variant) -> npt.NDArray[np.float64]:
    x = original.astype(np.float64)
    return clamped_moments(x, mean=variant.mean, std=variant.std, clip=variant.clip)[1]


def _patches(data: AuditData, variant: Variant, rows: npt.NDArray[np.int64], seeds: Sequence[int]) -> AttackResult:
    """Success from a central patch alone, by its side; the value is that of 16 x 16 pixels or the largest that fits."""
    sides = [side for side in SIDES if side <= min(data.size)] or [min(data.size)]
    shown = max(side for side in sides if side <= 16) if sides[0] <= 16 else sides[0]
    widest = max(sides)
    originals = np.concatenate([_centre(block, widest) for block in _in_blocks(data)])
    numbers = drawn_numbers(variant, seeds)
    probes = [_noisy_patches(variant, rows, widest, number) for number in numbers]
    shares = {}
    for side in sides:
        gallery = _as_seen(_centre(originals, side), variant).reshape(len(originals), -1)
        wins = [_wins(_centre(drawn, side).reshape(len(rows), -1), gallery, rows) for drawn in probes]
        shares[side] = over_patients(np.mean(wins, axis=0), _owners(data, rows), share=True)
    value, low, high = shares[shown]
    return AttackResult(
        attack=LINKAGE,
        attacker=MATCHED_FILTER,
        variant=variant.name,
        metric=f"{OF_PATCH}{shown}",
        unit="share",
        value=value,
        low=low,
        high=high,
        chance=1.0 / len(data),
        n_images=len(rows),
        n_patients=len(set(_owners(data, rows).tolist())),
        seeds=drawn_seeds(variant, seeds),
        notes=(
            f"from the central {shown} x {shown} pixels alone; curve: success by the side of the patch",
            *drawn_words(variant, numbers),
        ),
        curve=tuple((float(side), share[0]) for side, share in shares.items()),
    )


def _wins(probes: FloatImage, gallery: FloatImage, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Whether each probe, (n, P), is nearest to its own of the gallery, (G, P), at `rows`; a tie is a guess: (n,)."""
    distances = squared_distances(probes, gallery)
    # Patches that look the same, such as two wholly black ones, leave a guess among them.
    own = distances[np.arange(len(rows)), rows]
    tied = np.isclose(distances, own[:, None], rtol=0.0, atol=1e-9)
    return np.where(own <= distances.min(axis=1) + 1e-9, 1.0 / tied.sum(axis=1), 0.0)


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


def check_closed_form(data: AuditData, variant: Variant, *, most: int, seeds: Sequence[int]) -> CheckedLinkage | None:
    """Link central patches within small galleries of different patients, and predict each probe's chance.

    The side is the least at which the predicted success reaches 0.75, so that the comparison is not trivial. At least
    one draw for each of the seeds, of which the first deals out the galleries. None where there are too few patients
    for a gallery of three.
    """
    galleries = _galleries(data, variant, most=most, seed=seeds[0])
    if not galleries:
        return None
    rows = np.concatenate(galleries)
    widest = min(_WIDEST, *data.size)
    originals = np.split(_centre(_gather(data, rows), widest).astype(np.float64), len(galleries))
    side = _telling_side(originals[:_TELLERS], variant, widest)
    seen, predicted = [], []
    for members in originals:
        patches = _centre(members, side).reshape(len(members), -1)
        means, variances = clamped_moments(patches, mean=variant.mean, std=variant.std, clip=variant.clip)
        seen.append(means)
        predicted += [gallery_success(means, of_image, place) for place, of_image in enumerate(variances)]
    # A release exists once; noise made for the audit can be drawn again until there is enough to compare.
    repeats = 1 if variant.draws is not None else max(len(seeds), most // len(rows))
    found = np.zeros(len(rows))
    for number in range(repeats):
        drawn = _noisy_patches(variant, rows, side, number).reshape(len(rows), -1).astype(np.float64)
        parts = np.split(drawn, len(galleries))
        found += np.concatenate([_own_nearest(noisy, means) for noisy, means in zip(parts, seen, strict=True)])
    return CheckedLinkage(
        side=side,
        wins=found / repeats,
        predicted=np.array(predicted),
        rows=rows,
        repeats=repeats,
        gallery=len(galleries[0]),
    )


def _own_nearest(noisy: npt.NDArray[np.float64], means: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """(n,): whether each noisy patch, (n, P), lies nearest to the mean of its own original's, (n, P)."""
    distances = (means**2).sum(axis=1) - 2.0 * noisy @ means.T  # less what is alike for all of the gallery
    own: npt.NDArray[np.bool_] = distances.argmin(axis=1) == np.arange(len(noisy))
    return own


def _noisy_patches(variant: Variant, rows: npt.NDArray[np.int64], side: int, number: int) -> FloatImage:
    """(n, side, side): the centre of one draw of the images."""
    blocks = np.split(rows, range(_BLOCK, len(rows), _BLOCK))
    return np.concatenate([_centre(variant.draw(block, number), side) for block in blocks])


def _check(data: AuditData, variant: Variant, *, most: int, seeds: Sequence[int]) -> AttackResult | Skipped:
    checked = check_closed_form(data, variant, most=most, seeds=seeds)
    if checked is None:
        reason = "the closed form is compared over galleries of three patients or more"
        return Skipped(attack=LINKAGE, variant=variant.name, reason=reason)
    predicted = float(checked.predicted.mean())
    if not _TELLING[0] <= predicted <= _TELLING[1]:
        reason = (
            f"the closed form was not compared: no patch of up to {_WIDEST} pixels a side has a predicted success from "
            f"{_TELLING[0]:g} to {_TELLING[1]:g}; that of {checked.side} pixels has {predicted:.2f}"
        )
        return Skipped(attack=LINKAGE, variant=variant.name, reason=reason)
    value, low, high = over_patients(checked.wins, _owners(data, checked.rows), share=True)
    return AttackResult(
        attack=LINKAGE,
        attacker=MATCHED_FILTER,
        variant=variant.name,
        metric="top_1_checked",
        unit="share",
        value=value,
        low=low,
        high=high,
        chance=1.0 / checked.gallery,
        predicted=predicted,
        deviation=checked.deviation,
        n_images=len(checked.rows),
        n_patients=len(checked.rows),
        seeds=drawn_seeds(variant, seeds),
        notes=(
            f"made hard on purpose, to compare with the closed form: the central {checked.side} x {checked.side} "
            f"pixels, in galleries of {checked.gallery} patients, drawn {checked.repeats} times",
        ),
    )


def _telling_side(galleries: Sequence[npt.NDArray[np.float64]], variant: Variant, widest: int) -> int:
    """The least side of the patch whose predicted success reaches the wanted one, by some images of some galleries."""

    def reaches(side: int) -> bool:
        chances = []
        for originals in galleries:
            patches = _centre(originals, side).reshape(len(originals), -1)
            seen, variances = clamped_moments(patches, mean=variant.mean, std=variant.std, clip=variant.clip)
            chances += [gallery_success(seen, variances[place], place) for place in range(0, len(seen), 4)]
        return float(np.mean(chances)) >= _WANTED

    sides = range(1, widest + 1)
    return sides[min(bisect.bisect_left(sides, True, key=reaches), len(sides) - 1)]


def _galleries(data: AuditData, variant: Variant, *, most: int, seed: int) -> list[npt.NDArray[np.int64]]:
    """Rows of different patients, in galleries of equal size as far as there are patients."""
    rows = variant.available(data)
    generator = np.random.default_rng(seed)
    first = {data.patient_ids[row]: row for row in generator.permutation(rows).tolist()}
    # One image of a patient: those of one patient may look the same in the middle, which has no closed form.
    chosen = np.array(sorted(first.values()), dtype=np.int64)
    chosen = generator.permutation(chosen)[:most]
    if len(chosen) < _FEWEST:
        return []
    size = len(chosen) // -(-len(chosen) // CHECK_GALLERY)
    return [chosen[begin : begin + size] for begin in range(0, len(chosen) - size + 1, size)]


def _owners(data: AuditData, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.str_]:
    return np.array([data.patient_ids[row] for row in rows.tolist()])


def _in_blocks(data: AuditData) -> list[FloatImage]:
    return [data.clean(block) for block in np.split(np.arange(len(data)), range(_BLOCK, len(data), _BLOCK))]


def _gather(data: AuditData, rows: npt.NDArray[np.int64]) -> FloatImage:
    return np.concatenate([data.clean(block) for block in np.split(rows, range(_BLOCK, len(rows), _BLOCK))])


def _centre(images: npt.NDArray[_Float], side: int) -> npt.NDArray[_Float]:
    top, left = (images.shape[axis] // 2 - side // 2 for axis in (1, 2))
    return images[:, top : top + side, left : left + side]
