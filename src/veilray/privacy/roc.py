"""How well scores tell genuine pairs from impostor pairs, over patients who each weigh the same.

Everything follows from the placement of a genuine pair: the share of the impostor pairs of its own round that score
higher. The area under the ROC curve is one minus the mean placement, in which a tie counts half; the true-positive rate
at a false-positive rate f the share of placements up to f, in which a tie counts whole, since a threshold lets in all
that tie (Pepe, The Statistical Evaluation of Medical Tests, 2003, section 5.5). A patient's pairs share the weight of
one patient, and the impostor pairs of two patients that of one pair of patients; intervals come from drawing patients
with replacement, in which pairs of two patients get both their weights. Only those who are scored are drawn anew: whom
the attacker learned from stays as it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from veilray.errors import UsageError
from veilray.privacy.intervals import CONFIDENCE, certain_reach
from veilray.privacy.pairs import Codes, Mask, Pairs

Floats = npt.NDArray[np.float64]

LOW_RATE = 1e-3
"""The false-positive rate at which the true-positive rate is reported."""

ENOUGH_IMPOSTORS = 10_000
"""Impostor pairs of one round, in which the threshold is set, below which a rate of 1e-3 is not measured."""

_RESAMPLES = 500
_AT_ONCE = 64
_ROUNDING = 1e-9
_RATES = np.unique(np.concatenate([np.logspace(-4, -1, 31), np.linspace(0.1, 1.0, 31)]))


@dataclass(frozen=True, kw_only=True, eq=False)
class Round:
    """Pairs that one attacker scored: those of one fold with one seed. Higher scores say: one patient."""

    pairs: Pairs
    scores: Floats
    """(M,)"""

    def where(self, mask: Mask) -> Round:
        """The pairs that `mask` picks."""
        return Round(pairs=self.pairs.where(mask), scores=self.scores[mask])


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A figure and its 95 % interval over patients; no interval where there is one patient."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True, kw_only=True)
class Verification:
    """How well pairs were verified."""

    auc: Estimate
    auc_pairs: float
    """The area where every pair weighs the same, whoever's it is."""
    rate: Estimate | None
    """True-positive rate at a false-positive rate of 1e-3; None where a round has fewer than 10,000 impostor pairs."""
    curve: tuple[tuple[float, float], ...]
    """(false-positive rate, true-positive rate)"""
    n_genuine: int
    n_impostors: int
    fewest_impostors: int
    """Of one round."""
    n_patients: int
    """Patients with a genuine pair."""
    areas: Floats
    """(1 + R,): the area, and that of each resample of patients."""


def verification(rounds: Sequence[Round], patients: Codes, *, seeds: int, seed: int) -> Verification | None:
    """Measure the scores of all folds of `seeds` repetitions; None where there is no pair to tell from another.

    `patients` is (N,), by row. `seed` is that of the resampling. Raises UsageError for scores that are not finite.
    """
    usable = [one for one in rounds if 0 < np.count_nonzero(one.pairs.genuine) < len(one.pairs)]
    if not usable:
        return None
    if not all(np.isfinite(one.scores).all() for one in usable):
        raise UsageError("scores of pairs must be finite")
    draws = resampled(int(patients.max()) + 1, seed=seed)
    measured = [_measure(one, patients, draws) for one in usable]
    weights = np.concatenate([one.weights for one in measured], axis=1)
    areas = _means(1.0 - np.concatenate([one.placements for one in measured], axis=1), weights)
    places = np.concatenate([one.with_ties for one in measured], axis=1)
    plain = np.concatenate([one.plain for one in measured])
    impostors = [int(np.count_nonzero(~one.pairs.genuine)) for one in usable]
    known = len(np.unique(np.concatenate([patients[one.pairs.first[one.pairs.genuine]] for one in usable])))
    found = _means((places <= LOW_RATE + _ROUNDING).astype(np.float64), weights)
    return Verification(
        auc=summarised(areas, patients=known),
        auc_pairs=float(1.0 - plain.mean()),
        rate=summarised(found, patients=known) if min(impostors) >= ENOUGH_IMPOSTORS else None,
        curve=tuple((float(f), float(np.average(places[0] <= f + _ROUNDING, weights=weights[0]))) for f in _RATES),
        n_genuine=len(plain) // seeds,
        n_impostors=sum(impostors) // seeds,
        fewest_impostors=min(impostors),
        n_patients=known,
        areas=areas,
    )


def excess(one: Verification, other: Verification) -> Estimate:
    """By how much the first area exceeds the second, over the same resamples of patients; of the same pairs."""
    found = summarised(one.areas - other.areas)
    return found if one.n_patients > 1 else Estimate(value=found.value, low=None, high=None)


def hits_at_one(rounds: Sequence[Round], patients: Codes) -> tuple[Floats, Codes, float]:
    """Whether the best match of each image is of the same patient, among its round's other images.

    Returns (n,) shares over the rounds that an image is in, the images' rows, (n,), and the mean number of images to
    choose from. Images without another of their patient are not asked about. Ties go to chance: they share the hit.
    """
    hits: dict[int, list[float]] = {}
    sizes = []
    for one in rounds:
        rows, place = np.unique(np.concatenate([one.pairs.first, one.pairs.second]), return_inverse=True)
        first, second = place[: len(one.pairs)], place[len(one.pairs) :]
        score = np.full((len(rows), len(rows)), -np.inf)
        score[first, second] = score[second, first] = one.scores
        same = patients[rows][:, None] == patients[rows][None]
        np.fill_diagonal(same, val=False)
        best = score == score.max(axis=1, keepdims=True)
        share = (best & same).sum(axis=1) / best.sum(axis=1)
        for row in np.flatnonzero(same.any(axis=1)):
            hits.setdefault(int(rows[row]), []).append(float(share[row]))
            sizes.append(len(rows) - 1)
    asked = np.array(sorted(hits), dtype=np.int64)
    return np.array([np.mean(hits[int(row)]) for row in asked]), asked, float(np.mean(sizes)) if sizes else 0.0


@dataclass(frozen=True, kw_only=True, eq=False)
class _Measured:
    """Of one round, with the original patients first and then each resample: placements and weights, (1 + R, G)."""

    placements: Floats
    """In which a tie counts half."""
    with_ties: Floats
    """In which a tie counts whole."""
    weights: Floats
    plain: Floats
    """(G,): placements where every impostor pair weighs the same; a tie counts half."""


def _measure(one: Round, patients: Codes, draws: Floats) -> _Measured:
    genuine = one.pairs.genuine
    impostors = np.flatnonzero(~genuine)
    impostors = impostors[np.argsort(-one.scores[impostors], kind="stable")]
    falling = -one.scores[impostors]
    above = np.searchsorted(falling, -one.scores[genuine], side="left")
    tied = np.searchsorted(falling, -one.scores[genuine], side="right")
    first, second = patients[one.pairs.first[impostors]], patients[one.pairs.second[impostors]]
    cell = np.unique(np.minimum(first, second) * draws.shape[1] + np.maximum(first, second), return_inverse=True)[1]
    share = (1.0 / np.bincount(cell))[cell].astype(np.float32)
    ends = np.concatenate([above, tied])
    starts = np.unique(np.concatenate([[0], ends[ends < len(impostors)]]))
    placements, with_ties = np.empty((len(draws), len(above))), np.empty((len(draws), len(above)))
    comparable = np.empty(len(draws), dtype=np.bool_)
    for begin in range(0, len(draws), _AT_ONCE):
        drawn = np.ascontiguousarray(draws[begin : begin + _AT_ONCE].T, dtype=np.float32)
        sums = np.add.reduceat(drawn[first] * drawn[second] * share[:, None], starts, axis=0, dtype=np.float64)
        up_to = np.concatenate([np.zeros((1, sums.shape[1])), np.cumsum(sums, axis=0)])
        comparable[begin : begin + _AT_ONCE] = up_to[-1] > _ROUNDING
        up_to /= np.maximum(up_to[-1], _ROUNDING)
        before, until = (up_to[np.searchsorted(starts, end)].T for end in (above, tied))
        placements[begin : begin + _AT_ONCE] = (before + until) / 2.0
        with_ties[begin : begin + _AT_ONCE] = until
    owner = patients[one.pairs.first[genuine]]
    # A resample that has no impostors of this round says nothing of it.
    weights = comparable[:, None] * draws[:, owner] / np.bincount(owner)[owner]
    plain = (above + tied) / (2.0 * len(impostors))
    return _Measured(placements=placements, with_ties=with_ties, weights=weights, plain=plain)


def resampled(patients: int, *, seed: int) -> Floats:
    """(1 + R, P): how often each patient is taken; once in the first row, at random in the R others."""
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(patients, np.full(patients, 1.0 / patients), size=_RESAMPLES)
    return np.concatenate([np.ones((1, patients)), drawn.astype(np.float64)])


def summarised(values: Floats, *, patients: int | None = None) -> Estimate:
    """The first of (1 + R,) values, and the interval that the others, those of resamples, give.

    `patients`: how many bear a share or an area, from 0 to 1; no interval for one. Where all resamples agree at 0 or 1,
    which they take for certainty, the interval is the exact one of a share of so many patients.
    """
    value = float(values[0])
    drawn = values[1:][np.isfinite(values[1:])]
    if patients == 1 or not len(drawn):
        return Estimate(value=value, low=None, high=None)
    if patients is not None:
        reach = certain_reach(patients)
        if drawn.min() >= 1.0 - _ROUNDING:
            return Estimate(value=value, low=min(reach, value), high=1.0)
        if drawn.max() <= _ROUNDING:
            return Estimate(value=value, low=0.0, high=max(1.0 - reach, value))
    tail = (1.0 - CONFIDENCE) / 2.0
    low, high = np.quantile(drawn, [tail, 1.0 - tail])
    return Estimate(value=value, low=float(low), high=float(high))


def _means(values: Floats, weights: Floats) -> Floats:
    """(1 + R,): weighted means of rows, (1 + R, G) each; NaN where nothing weighs."""
    sums = weights.sum(axis=1)
    means: Floats = (values * weights).sum(axis=1) / np.where(sums > 0, sums, np.nan)
    return means
