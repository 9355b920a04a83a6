"""Membership inference on a released model: was this patient among those that it was trained on?

By a threshold on a patient's loss (Yeom, Giacomelli, Fredrikson and Jha, CSF 2018), and by the likelihood ratio attack
(Carlini, Chien, Nasr, Song, Terzis and Tramèr, IEEE S&P 2022), which compares the loss with those of shadow models that
were trained with and without the patient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from veilray.errors import UsageError
from veilray.privacy.catalogue import LIRA, LOSS, MEMBERSHIP
from veilray.privacy.data import Progress
from veilray.privacy.pairs import Codes, Mask
from veilray.privacy.results import AttackResult, Skipped
from veilray.privacy.roc import Estimate, resampled, summarised

Floats = npt.NDArray[np.float64]

FEWEST_SHADOWS = 16
FEWEST_PATIENTS = 10
"""Members, and others, below which nothing is measured."""
_ERRORS = 10
"""Others above a threshold, of all there are, below which no rate is given."""
_RATES = (0.01, 0.001)
_SMALLEST_LOSS = 1e-12
_SMALLEST_SPREAD = 1e-6
_ROUNDING = 1e-9

Train = Callable[[Mask, int], Floats]
"""Which patients to train on, (P,), and a seed -> each patient's loss under that model with each noise, (S, P)."""


def patient_losses(losses: npt.NDArray[np.floating], patients: Codes) -> Floats:
    """The mean loss of each patient: (N,) losses of images and whose they are, 0 to P - 1 -> (P,)."""
    means: Floats = np.bincount(patients, weights=losses.astype(np.float64)) / np.bincount(patients)
    return means


def loss_threshold(losses: Floats, member: Mask, *, model: str) -> list[AttackResult | Skipped]:
    """Take patients of low loss for members: (S, P) losses with S noises and whether each was trained on, (P,).

    `model`: its name. Figures are averaged over the noises.
    """
    return _figures(-losses, member, attacker=LOSS, model=model, notes=())


def lira(
    losses: Floats, member: Mask, train: Train, *, model: str, shadows: int, seed: int, progress: Progress
) -> list[AttackResult | Skipped]:
    """The likelihood ratio attack on a model that gives patients these losses with S noises, (S, P).

    Each of the `shadows` is trained on half of the patients, and so that each patient is in half of them. The
    logarithms of a patient's losses with and without it are taken as normal with one spread over all patients, as the
    paper advises for few shadows. Raises UsageError for fewer than 16 or an odd number of shadows.
    """
    if shadows < FEWEST_SHADOWS or shadows % 2:
        raise UsageError(f"{shadows} shadow models: take an even number, at least {FEWEST_SHADOWS}")
    if _too_few(member):
        return [Skipped(attack=MEMBERSHIP, variant=model, reason=_too_few(member))]
    included = _halves(losses.shape[1], shadows, seed)
    told = np.empty((shadows, *losses.shape))
    for place, mask in enumerate(included):
        progress(f"shadow model {place + 1} of {shadows}")
        told[place] = _logarithm(train(mask, seed + 1 + place))
    ratio = np.stack([_likelihood_ratio(_logarithm(one), told[:, k], included) for k, one in enumerate(losses)])
    notes = (f"{shadows} shadow models, each trained on half of the patients",)
    return _figures(ratio, member, attacker=LIRA, model=model, notes=notes)


def _halves(patients: int, shadows: int, seed: int) -> Mask:
    """(shadows, P): pairs of halves that complement each other."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(shadows // 2):
        mask = np.zeros(patients, dtype=np.bool_)
        mask[rng.permutation(patients)[: patients // 2]] = True
        rows += [mask, ~mask]
    return np.array(rows)


def _likelihood_ratio(target: Floats, told: Floats, included: Mask) -> Floats:
    """Logarithm of how much likelier each patient's loss is with the patient than without: (P,)."""
    count = included.sum(axis=0)
    within = np.where(included, told, 0.0).sum(axis=0) / count
    without = np.where(included, 0.0, told).sum(axis=0) / (len(told) - count)
    apart = np.where(included, told - within, told - without)
    # Two means were taken of each patient's values.
    freedom = apart.size - 2 * apart.shape[1]
    spread = max(float(np.sqrt((apart**2).sum() / freedom)), _SMALLEST_SPREAD)
    ratio: Floats = ((target - without) ** 2 - (target - within) ** 2) / (2.0 * spread**2)
    return ratio


def _logarithm(losses: Floats) -> Floats:
    logarithms: Floats = np.log(np.maximum(losses, _SMALLEST_LOSS))
    return logarithms


def _too_few(member: Mask) -> str:
    members, others = int(member.sum()), int((~member).sum())
    if min(members, others) < FEWEST_PATIENTS:
        return (
            f"{members} patients that the model was trained on and {others} that it was not are too few; it takes "
            f"{FEWEST_PATIENTS} of each"
        )
    return ""


def _figures(
    scores: Floats, member: Mask, *, attacker: str, model: str, notes: Sequence[str]
) -> list[AttackResult | Skipped]:
    """AUC, and true-positive rates at low false-positive rates where there are others enough."""
    if scores.ndim != 2 or scores.shape[1:] != member.shape or not np.isfinite(scores).all():
        raise UsageError("membership inference needs one finite loss for each patient")
    if _too_few(member):
        return [Skipped(attack=MEMBERSHIP, variant=model, reason=_too_few(member))]
    others, patients = int((~member).sum()), len(member)
    smaller = min(others, patients - others)  # bounds what can be told
    draws = resampled(patients, seed=0)
    placements = [_placements(one, member, draws) for one in scores]
    weights = draws[:, member]

    def record(metric: str, values: Floats, chance: float) -> AttackResult:
        sums = weights.sum(axis=1)
        means = (values * weights).sum(axis=1) / np.where(sums > 0, sums, np.nan)
        figure: Estimate = summarised(means, patients=smaller)
        return AttackResult(
            attack=MEMBERSHIP,
            attacker=attacker,
            variant=model,
            metric=metric,
            unit="" if metric == "auc" else "share",
            value=figure.value,
            low=figure.low,
            high=figure.high,
            chance=chance,
            n_images=patients,
            n_patients=smaller,
            notes=(*notes, f"{patients - others} members and {others} others"),
        )

    found: list[AttackResult | Skipped] = [record("auc", 1.0 - np.mean(placements, axis=0), 0.5)]
    for rate in _RATES:
        metric = f"tpr_at_fpr_{rate:g}"
        if others * rate >= _ERRORS:
            hits = [(one <= rate + _ROUNDING).astype(np.float64) for one in placements]
            found.append(record(metric, np.mean(hits, axis=0), rate))
        else:
            reason = f"true-positive rate at a false-positive rate of {rate:g}: {others} others are too few"
            found.append(Skipped(attack=MEMBERSHIP, variant=model, reason=f"{attacker}, {reason}"))
    return found


def _placements(scores: Floats, member: Mask, draws: Floats) -> Floats:
    """(1 + R, M): the share of the others that score as high as each member; a tie counts half."""
    others = scores[~member]
    order = np.argsort(others)
    weights = draws[:, ~member][:, order]
    total = np.concatenate([np.zeros((len(draws), 1)), np.cumsum(weights, axis=1)], axis=1)
    left = np.searchsorted(others[order], scores[member], side="left")
    right = np.searchsorted(others[order], scores[member], side="right")
    sums = np.maximum(total[:, -1:], 1e-12)
    shares: Floats = 1.0 - (total[:, left] + total[:, right]) / (2.0 * sums)
    return shares
