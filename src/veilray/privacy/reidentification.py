"""Re-identification: are two images, taken at different times, of one patient?

Attackers by strength: who knows sex, view and age but sees no pixels; classical similarities that need no training; a
verification network trained on other patients' images of the same variant. Every patient is scored by attackers that
never saw them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from veilray.privacy.catalogue import (
    GRADIENTS,
    KNOWING,
    NETWORK,
    PART,
    REIDENTIFICATION,
    THUMBNAILS,
    metadata_alone,
    network_knowing,
)
from veilray.privacy.data import AuditData, Progress, Variant
from veilray.privacy.extent import Extent
from veilray.privacy.folds import FOLDS, patient_folds, splits
from veilray.privacy.intervals import over_patients
from veilray.privacy.metadata import Floats, agreement_scores, metadata_scores
from veilray.privacy.observing import Observer, chosen_rows
from veilray.privacy.pairs import AGE_WINDOW, Attributes, Codes, all_pairs, encode, matched, patient_codes
from veilray.privacy.pairs import with_follow_ups as count_with_follow_ups
from veilray.privacy.results import AttackResult, Difference, Role, Skipped
from veilray.privacy.roc import ENOUGH_IMPOSTORS, Estimate, Round, Verification, excess, hits_at_one, verification
from veilray.privacy.verification import Looks, network_scores

FEWEST_WITH_FOLLOW_UPS = 2 * FOLDS
"""Patients with two images or more below which nothing is trained: each fold needs some to learn from, some to try."""

Rounds = dict[str, list[Round]]


@dataclass(frozen=True, eq=False)
class ReIdentification:
    """The attack as an audit calls it; see `veilray.privacy.data`."""

    observer: Observer
    _blind: dict[bytes, list[Floats]] = field(default_factory=dict)
    """What metadata say of the pairs of the rows that were attacked last, round by round."""

    def __call__(
        self, data: AuditData, variant: Variant, *, extent: Extent, seeds: Sequence[int], progress: Progress
    ) -> list[AttackResult | Skipped]:
        """Attack a variant; figures of attackers who see no pixels stand beside those of its pairs."""
        rows = chosen_rows(data, variant, extent=extent)
        patients = patient_codes([data.patient_ids[row] for row in rows])
        reason = _impossible(patients)
        if reason:
            return [Skipped(attack=REIDENTIFICATION, variant=variant.name, reason=reason)]
        attributes = encode(data.labels).take(rows)
        looks = self.observer.looks(data, variant, rows, extent=extent, progress=progress)
        skipped: list[AttackResult | Skipped] = []
        if count_with_follow_ups(patients) < FEWEST_WITH_FOLLOW_UPS:
            rounds, used = _untrained(looks, patients, attributes), [0]
            few = f"only {count_with_follow_ups(patients)} patients have several images; to train on some and attack "
            reason = f"{few}the others takes at least {FEWEST_WITH_FOLLOW_UPS}"
            skipped = [Skipped(attack=REIDENTIFICATION, variant=variant.name, reason=f"{NETWORK}: {reason}")]
        else:
            used = list(seeds)
            rounds = _trained(looks, patients, attributes, used, progress)
            if attributes.known:
                key = repr((rows.tolist(), used, data.digest)).encode()
                rounds[metadata_alone(attributes.known)] = self._metadata(key, rounds[NETWORK], patients, attributes)
        progress("intervals over patients")
        notes = []
        if len(rows) < len(variant.available(data)):
            notes.append(f"on {len(rows):,} of {len(variant.available(data)):,} images")
        told = _Told(
            variant=variant.name,
            patients=patients,
            attributes=attributes,
            seeds=used,
            weakened=self.observer.weakened,
            notes=tuple(notes),
            # Who sees no pixels has the same figures for every variant with the same images.
            blind_too=variant.kind == "clean" or not np.array_equal(rows, chosen_rows(data, None, extent=extent)),
        )
        return [*_figures(rounds, told), *skipped]

    def _metadata(self, key: bytes, rounds: list[Round], patients: Codes, attributes: Attributes) -> list[Round]:
        """What metadata say of the pairs of each round, learned from the patients of the other folds."""
        if key not in self._blind:
            self._blind.clear()
            self._blind[key] = [
                metadata_scores(_others(one, patients), one.pairs, patients, attributes) for one in rounds
            ]
        return [Round(pairs=one.pairs, scores=scores) for one, scores in zip(rounds, self._blind[key], strict=True)]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Told:
    """What all figures of a variant share."""

    variant: str
    patients: Codes
    attributes: Attributes
    seeds: list[int]
    weakened: str
    """What the network lacks."""
    notes: tuple[str, ...]
    """Of the network."""
    blind_too: bool
    """Whether the figures of who sees no pixels are given."""

    @property
    def blind(self) -> str:
        """Who sees no pixels; empty where nothing is known."""
        return metadata_alone(self.attributes.known) if self.attributes.known else ""


def _impossible(patients: Codes) -> str:
    """Why no pair can be told from another; empty where it can."""
    if len(np.unique(patients)) < 2:
        return "there is one patient only: nobody to take them for"
    if not count_with_follow_ups(patients):
        return "no patient has two images: there is nothing to recognise them by"
    return ""


def _others(one: Round, patients: Codes) -> Codes:
    """The rows of all patients but those of a round."""
    there = np.unique(patients[np.concatenate([one.pairs.first, one.pairs.second])])
    return np.flatnonzero(~np.isin(patients, there))


def _untrained(looks: Looks, patients: Codes, attributes: Attributes) -> Rounds:
    pairs = all_pairs(patients)
    scores = {name: floor[pairs.first, pairs.second] for name, floor in looks.floors.items()}
    if attributes.known:
        scores[metadata_alone(attributes.known)] = agreement_scores(pairs, attributes)
    return {name: [Round(pairs=pairs, scores=one)] for name, one in scores.items()}


def _trained(looks: Looks, patients: Codes, attributes: Attributes, seeds: Sequence[int], progress: Progress) -> Rounds:
    """Scores of all attackers who see the images in all folds, by attacker."""
    rounds: Rounds = {}
    for place, seed in enumerate(seeds):
        for fold, (train, test) in enumerate(splits(patient_folds(patients, seed=seed))):
            progress(f"re-identification: seed {place + 1} of {len(seeds)}, fold {fold + 1} of {FOLDS}")
            pairs, scores = network_scores(looks, patients, attributes, train=train, test=test, seed=seed)
            for name, score in scores.items():
                rounds.setdefault(name, []).append(Round(pairs=pairs, scores=score))
    return rounds


@dataclass(frozen=True, kw_only=True, eq=False)
class _Scored:
    """What one attacker made of the pairs of all rounds."""

    attacker: str
    role: Role
    knowing: bool
    """Whether it is the network that is told the metadata as well."""
    rounds: list[Round]
    every: Verification | None
    """How well it verifies all pairs; None where there is none to tell from another."""
    alike: Verification | None
    """How well it verifies pairs that are alike in what is known; None where nothing is."""


def _figures(rounds: Mapping[str, list[Round]], told: _Told) -> list[AttackResult | Skipped]:
    scored = [_scored(name, of_attacker, told) for name, of_attacker in rounds.items()]
    blind = next((one for one in scored if one.role == "baseline"), None)
    found: list[AttackResult | Skipped] = []
    fewest = ENOUGH_IMPOSTORS
    for one in scored:
        if one.every is not None and (one is not blind or told.blind_too):
            fewest = one.every.fewest_impostors  # of the same pairs whoever scores them
            found += _of_attacker(one, one.every, blind, told)
    return [*found, *_not_measured(told, fewest)]


def _scored(name: str, rounds: list[Round], told: _Told) -> _Scored:
    role = _role(name, told)
    alike = None
    if role != "part" and told.attributes.known:
        of_pairs_alike = [one.where(matched(one.pairs, told.attributes)) for one in rounds]
        alike = verification(of_pairs_alike, told.patients, seeds=len(told.seeds), seed=0)
    return _Scored(
        attacker=name,
        role=role,
        knowing=bool(told.attributes.known) and name == network_knowing(told.attributes.known),
        rounds=rounds,
        every=verification(rounds, told.patients, seeds=len(told.seeds), seed=0),
        alike=alike,
    )


def _role(name: str, told: _Told) -> Role:
    """Whether it is an attacker in its own right, sees no pixels, or is a part of the network."""
    if name == told.blind:
        return "baseline"
    knowing = network_knowing(told.attributes.known) if told.attributes.known else ""
    return "attacker" if name in (NETWORK, knowing, THUMBNAILS, GRADIENTS) else "part"


def _of_attacker(one: _Scored, every: Verification, blind: _Scored | None, told: _Told) -> list[AttackResult]:
    """The figures of an attacker, those of areas with what they exceed metadata by over the same pairs."""
    if one.role == "part":
        return [_auc(PART + one.attacker, every, told, "auc").model_copy(update={"role": one.role})]
    plain = f"{every.auc_pairs:.3f} where every pair weighs the same, whoever's it is"
    found = [_above(_auc(one.attacker, every, told, "auc", plain), every, blind.every if blind else None)]
    found += [*_rate(one.attacker, every, told), _precision(one.attacker, one.rounds, told)]
    if one.alike is not None:
        on = {"matched_on": _matching(told.attributes)}
        alike = _auc(one.attacker, one.alike, told, "auc_matched").model_copy(update=on)
        found.append(_above(alike, one.alike, blind.alike if blind else None))
    if one.role == "baseline":
        return [each.model_copy(update={"role": one.role, "above_metadata": None}) for each in found]
    # The network that is told metadata has metrics of its own: what it achieves is not the image's doing alone.
    ending = KNOWING if one.knowing else ""
    return [each.model_copy(update={"metric": f"{each.metric}{ending}"}) for each in found]


def _above(figure: AttackResult, seeing: Verification, blind: Verification | None) -> AttackResult:
    """The figure with what it exceeds that of metadata alone by, where something is known."""
    if blind is None:
        return figure
    more = excess(seeing, blind)
    return figure.model_copy(update={"above_metadata": Difference(value=more.value, low=more.low, high=more.high)})


def _not_measured(told: _Told, fewest: int) -> list[Skipped]:
    reasons = []
    if fewest < ENOUGH_IMPOSTORS:
        reasons.append(
            f"true-positive rate at a false-positive rate of 1e-3: {fewest:,} impostor pairs in a fold are too few to "
            f"set its threshold by; it takes {ENOUGH_IMPOSTORS:,}"
        )
    if not told.attributes.known:
        reasons.append("matched impostors and the baseline of metadata: neither sex nor view nor age is known")
    return [Skipped(attack=REIDENTIFICATION, variant=told.variant, reason=reason) for reason in reasons]


def _rate(attacker: str, measured: Verification, told: _Told) -> list[AttackResult]:
    if measured.rate is None:
        return []
    rate = _result(attacker, "tpr_at_fpr_1e-3", measured.rate, measured, told, chance=1e-3, notes=[])
    return [rate.model_copy(update={"unit": "share"})]


def _auc(attacker: str, measured: Verification, told: _Told, metric: str, *notes: str) -> AttackResult:
    counted = f"{measured.n_genuine:,} genuine and {measured.n_impostors:,} impostor pairs with each seed"
    found = _result(attacker, metric, measured.auc, measured, told, chance=0.5, notes=[*notes, counted])
    return found.model_copy(update={"curve": measured.curve})


def _result(
    attacker: str,
    metric: str,
    figure: Estimate,
    measured: Verification,
    told: _Told,
    *,
    chance: float,
    notes: list[str],
) -> AttackResult:
    return AttackResult(
        attack=REIDENTIFICATION,
        attacker=attacker,
        weakened=_weakened(attacker, told),
        variant=told.variant,
        metric=metric,
        value=figure.value,
        low=figure.low,
        high=figure.high,
        chance=chance,
        n_images=len(told.patients),
        n_patients=measured.n_patients,
        n_pairs=measured.n_genuine + measured.n_impostors,
        seeds=tuple(told.seeds),
        notes=(*_own_notes(attacker, told), *notes),
    )


def _precision(attacker: str, scored: Sequence[Round], told: _Told) -> AttackResult:
    hits, rows, choices = hits_at_one(scored, told.patients)
    value, low, high = over_patients(hits, told.patients[rows], share=True)
    return AttackResult(
        attack=REIDENTIFICATION,
        attacker=attacker,
        weakened=_weakened(attacker, told),
        variant=told.variant,
        metric="precision_at_1",
        unit="share",
        value=value,
        low=low,
        high=high,
        n_images=len(rows),
        n_patients=len(np.unique(told.patients[rows])),
        seeds=tuple(told.seeds),
        notes=(*_own_notes(attacker, told), f"the best of {choices:.0f} other images on average"),
    )


def _learned(attacker: str) -> bool:
    return attacker.startswith((NETWORK, PART))


def _weakened(attacker: str, told: _Told) -> str:
    return told.weakened if _learned(attacker) else ""


def _own_notes(attacker: str, told: _Told) -> tuple[str, ...]:
    return tuple(filter(None, [_weakened(attacker, told), *(told.notes if _learned(attacker) else ())]))


def _matching(attributes: Attributes) -> tuple[str, ...]:
    return tuple(f"age within {AGE_WINDOW:g} years" if name == "age" else name for name in attributes.known)
