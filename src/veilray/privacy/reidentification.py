"""Re-identification: are two images, taken at different times, of one patient?

Attackers by strength: who knows sex, view and age but sees no pixels; classical similarities that need no training; a
verification network trained on other patients' images of the same variant. Every patient is scored by attackers that
never saw them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from veilray.privacy.data import AuditData, Budget, Progress, Variant
from veilray.privacy.folds import FOLDS, patient_folds, splits
from veilray.privacy.intervals import over_patients
from veilray.privacy.metadata import metadata_scores
from veilray.privacy.observing import GRADIENTS, THUMBNAILS, Observer, chosen_rows
from veilray.privacy.pairs import AGE_WINDOW, Attributes, Codes, all_pairs, encode, matched, patient_codes
from veilray.privacy.pairs import with_follow_ups as count_with_follow_ups
from veilray.privacy.results import AttackResult, Skipped
from veilray.privacy.roc import ENOUGH_IMPOSTORS, Estimate, Round, Verification, hits_at_one, verification
from veilray.privacy.verification import NETWORK, NETWORK_AND_METADATA, Looks, network_scores

ATTACK = "re-identification"
METADATA = "sex, view and age alone"
PART = "part of the network: "

FEWEST_WITH_FOLLOW_UPS = 2 * FOLDS
"""Patients with two images or more below which nothing is trained: each fold needs some to learn from, some to try."""

Rounds = dict[str, list[Round]]

_WHOLE = (NETWORK, NETWORK_AND_METADATA, METADATA, THUMBNAILS, GRADIENTS)
"""Attackers in their own right; the others are parts of the network."""


@dataclass(frozen=True, eq=False)
class ReIdentification:
    """The attack as an audit calls it; see `veilray.privacy.data`."""

    observer: Observer

    def __call__(
        self,
        data: AuditData,
        variants: Sequence[Variant],
        *,
        budget: Budget,
        seeds: Sequence[int],
        progress: Progress,
    ) -> list[AttackResult | Skipped]:
        """Attack each variant; figures of attackers who see no pixels go with the clean one."""
        found: list[AttackResult | Skipped] = []
        for variant in variants:
            found += self._attack(data, variant, budget, seeds, progress)
        return found

    def _attack(
        self, data: AuditData, variant: Variant, budget: Budget, seeds: Sequence[int], progress: Progress
    ) -> list[AttackResult | Skipped]:
        rows = chosen_rows(data, variant, effort=budget.effort)
        patients = patient_codes([data.patient_ids[row] for row in rows])
        reason = _impossible(patients)
        if reason:
            return [Skipped(attack=ATTACK, variant=variant.name, reason=reason)]
        attributes = encode(data.labels).take(rows)
        looks = self.observer.looks(data, variant, rows, effort=budget.effort, progress=progress)
        skipped: list[AttackResult | Skipped] = []
        if count_with_follow_ups(patients) < FEWEST_WITH_FOLLOW_UPS:
            rounds, used = _untrained(looks, patients), [0]
            few = f"only {count_with_follow_ups(patients)} patients have several images; to train on some and attack "
            reason = f"{few}the others takes at least {FEWEST_WITH_FOLLOW_UPS}"
            skipped = [Skipped(attack=ATTACK, variant=variant.name, reason=f"{NETWORK}: {reason}")]
        else:
            used = list(seeds)
            rounds = _trained(looks, patients, attributes, used, progress, metadata=variant.kind == "clean")
        progress("intervals over patients")
        told = _Told(variant=variant.name, patients=patients, attributes=attributes, seeds=used)
        notes = [] if self.observer.has_alexnet else ["without AlexNet's features, whose weights were not given"]
        if len(rows) < len(variant.available(data)):
            notes.append(f"on {len(rows):,} of {len(variant.available(data)):,} images")
        return [*_figures(rounds, told, notes), *skipped]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Told:
    """What all figures of a variant share."""

    variant: str
    patients: Codes
    attributes: Attributes
    seeds: list[int]


def _impossible(patients: Codes) -> str:
    """Why no pair can be told from another; empty where it can."""
    if len(np.unique(patients)) < 2:
        return "there is one patient only: nobody to take them for"
    if not count_with_follow_ups(patients):
        return "no patient has two images: there is nothing to recognise them by"
    return ""


def _untrained(looks: Looks, patients: Codes) -> Rounds:
    pairs = all_pairs(patients)
    return {name: [Round(pairs=pairs, scores=floor[pairs.first, pairs.second])] for name, floor in looks.floors.items()}


def _trained(
    looks: Looks, patients: Codes, attributes: Attributes, seeds: Sequence[int], progress: Progress, *, metadata: bool
) -> Rounds:
    """Scores of all attackers in all folds, by attacker."""
    rounds: Rounds = {}
    for place, seed in enumerate(seeds):
        for fold, (train, test) in enumerate(splits(patient_folds(patients, seed=seed))):
            progress(f"re-identification: seed {place + 1} of {len(seeds)}, fold {fold + 1} of {FOLDS}")
            pairs, scores = network_scores(looks, patients, attributes, train=train, test=test, seed=seed)
            if metadata and attributes.known:
                scores[METADATA] = metadata_scores(train, pairs, patients, attributes)
            for name, score in scores.items():
                rounds.setdefault(name, []).append(Round(pairs=pairs, scores=score))
    return rounds


def _figures(rounds: Mapping[str, list[Round]], told: _Told, notes: list[str]) -> list[AttackResult | Skipped]:
    found: list[AttackResult | Skipped] = []
    too_few = 0
    for name, scored in rounds.items():
        measured = verification(scored, told.patients, seeds=len(told.seeds), seed=0)
        if measured is None:
            continue
        own = notes if name.startswith(NETWORK) else []
        if name not in _WHOLE:
            found.append(_auc(PART + name, measured, told, "auc", notes))
            continue
        whole = [*_over_all(name, measured, told, own), _precision(name, scored, told, own)]
        too_few = 0 if measured.rate else measured.n_impostors
        if name == NETWORK_AND_METADATA:
            # Metrics of their own: what this attacker achieves is not the image's doing alone.
            found += [one.model_copy(update={"metric": f"{one.metric}_with_metadata"}) for one in whole]
            continue
        found += whole
        if told.attributes.known:
            alike = [one.where(matched(one.pairs, told.attributes)) for one in scored]
            among = verification(alike, told.patients, seeds=len(told.seeds), seed=0)
            if among is not None:
                found.append(_auc(name, among, told, "auc_matched", [*own, _matching(told.attributes)]))
    return found + _not_measured(told, too_few)


def _not_measured(told: _Told, too_few: int) -> list[AttackResult | Skipped]:
    reasons = []
    if too_few:
        reasons.append(
            f"true-positive rate at a false-positive rate of 1e-3: {too_few:,} impostor pairs are too few; it takes "
            f"{ENOUGH_IMPOSTORS:,}"
        )
    if not told.attributes.known:
        reasons.append("matched impostors and the baseline of metadata: neither sex nor view nor age is known")
    return [Skipped(attack=ATTACK, variant=told.variant, reason=reason) for reason in reasons]


def _over_all(attacker: str, measured: Verification, told: _Told, notes: list[str]) -> list[AttackResult]:
    alike = f"{measured.auc_pairs:.3f} where every pair weighs the same, whoever's it is"
    found = [_auc(attacker, measured, told, "auc", [*notes, alike])]
    if measured.rate is not None:
        found.append(_result(attacker, "tpr_at_fpr_1e-3", measured.rate, measured, told, chance=1e-3, notes=notes))
    return found


def _auc(attacker: str, measured: Verification, told: _Told, metric: str, notes: list[str]) -> AttackResult:
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
        attack=ATTACK,
        attacker=attacker,
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
        notes=tuple(notes),
    )


def _precision(attacker: str, scored: Sequence[Round], told: _Told, notes: list[str]) -> AttackResult:
    hits, rows, choices = hits_at_one(scored, told.patients)
    value, low, high = over_patients(hits, told.patients[rows], share=True)
    return AttackResult(
        attack=ATTACK,
        attacker=attacker,
        variant=told.variant,
        metric="precision_at_1",
        value=value,
        low=low,
        high=high,
        n_images=len(rows),
        n_patients=len(np.unique(told.patients[rows])),
        seeds=tuple(told.seeds),
        notes=(*notes, f"the best of {choices:.0f} other images on average"),
    )


def _matching(attributes: Attributes) -> str:
    names = [f"age within {AGE_WINDOW:g} years" if name == "age" else name for name in attributes.known]
    return f"both images agree in {' and '.join(names)}"
