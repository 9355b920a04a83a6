"""Attribute inference: what sex, view and age group an image gives away.

A ridge regression on the images' features, trained on other patients' images of the same variant.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from veilray.privacy.data import AuditData, Budget, Progress, Variant
from veilray.privacy.embedding import predict, principal_coordinates, ridge
from veilray.privacy.features import Similarities
from veilray.privacy.folds import FOLDS, patient_folds, splits
from veilray.privacy.intervals import over_patients
from veilray.privacy.observing import Observer, chosen_rows
from veilray.privacy.pairs import Attributes, Codes, encode, patient_codes
from veilray.privacy.results import AttackResult, Skipped
from veilray.privacy.roc import Estimate, resampled, summarised

Floats = npt.NDArray[np.float64]

ATTACK = "attribute inference"
AGE_EDGES = (40.0, 60.0)
"""Years at which an age group ends: under 40, 40 to 59, 60 and over."""

COMPONENTS = 250
PENALTY = 0.3
FEWEST = 2 * FOLDS
"""Patients of a class below which it is not inferred."""


@dataclass(frozen=True, eq=False)
class AttributeInference:
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
        """Infer sex, view and age group from each variant; Skipped where they are unknown or all alike."""
        found: list[AttackResult | Skipped] = []
        for variant in variants:
            rows = chosen_rows(data, variant, effort=budget.effort)
            patients = patient_codes([data.patient_ids[row] for row in rows])
            targets = _targets(encode(data.labels).take(rows))
            looks: Similarities | None = None
            for name, classes in targets.items():
                reason = _impossible(classes, patients)
                if reason:
                    found.append(Skipped(attack=ATTACK, variant=variant.name, reason=f"{name}: {reason}"))
                    continue
                if looks is None:
                    seen = self.observer.looks(data, variant, rows, effort=budget.effort, progress=progress)
                    looks = np.sum(list(seen.learned.values()), axis=0)
                progress(f"attributes: {name}")
                told = _Told(variant=variant.name, name=name, seeds=tuple(seeds))
                found += _infer(looks, classes, patients, told)
        return found


@dataclass(frozen=True, kw_only=True)
class _Told:
    variant: str
    name: str
    seeds: tuple[int, ...]


def _targets(attributes: Attributes) -> dict[str, Codes]:
    """Classes by attribute, (N,) from 0; -1 where they are unknown."""
    age = np.where(np.isfinite(attributes.age), np.digitize(attributes.age, AGE_EDGES), -1)
    return {"sex": attributes.sex, "view": attributes.view, "age group": age.astype(np.int64)}


def _impossible(classes: Codes, patients: Codes) -> str:
    """Why a class cannot be inferred; empty where it can."""
    if not (classes >= 0).any():
        return "it is not known of the images"
    sizes = [len(np.unique(patients[classes == one])) for one in np.unique(classes[classes >= 0])]
    if len(sizes) < 2:
        return "it is the same in all images"
    if sorted(sizes)[-2] < FEWEST:
        return f"fewer than {FEWEST} patients of a second class"
    return ""


def _infer(looks: Similarities, classes: Codes, patients: Codes, told: _Told) -> list[AttackResult]:
    # Classes of too few patients to learn are left out.
    sizes = {one: len(np.unique(patients[classes == one])) for one in np.unique(classes[classes >= 0]).tolist()}
    kept = [one for one, size in sizes.items() if size >= FEWEST]
    rows = np.flatnonzero(np.isin(classes, kept))
    truth, owners = np.searchsorted(kept, classes[rows]), np.unique(patients[rows], return_inverse=True)[1]
    inner = looks[np.ix_(rows, rows)]
    scores = [class_scores(inner, truth, owners, seed=seed) for seed in told.seeds]
    right = np.mean([said.argmax(axis=1) == truth for said in scores], axis=0)
    value, low, high = over_patients(right, owners, share=True)
    weights = 1.0 / np.bincount(owners)[owners]
    most = float(np.bincount(truth, weights=weights).max() / weights.sum())
    n_patients = int(owners.max()) + 1

    def record(metric: str, figure: Estimate, chance: float) -> AttackResult:
        return AttackResult(
            attack=ATTACK,
            attacker="regression on the images' features",
            variant=told.variant,
            metric=f"{told.name.replace(' ', '_')}_{metric}",
            value=figure.value,
            low=figure.low,
            high=figure.high,
            chance=chance,
            n_images=len(rows),
            n_patients=n_patients,
            seeds=told.seeds,
            notes=("chance: always the most frequent class",) if metric == "accuracy" else (),
        )

    found = [record("accuracy", Estimate(value=value, low=low, high=high), most)]
    if len(kept) == 2:
        odds = [said[:, 1] - said[:, 0] for said in scores]
        found.insert(0, record("auc", class_auc(odds, truth == 1, owners), 0.5))
    return found


def class_scores(similarities: Similarities, classes: Codes, patients: Codes, *, seed: int) -> Floats:
    """How strongly each image says each class, by regressions on other patients' images: (N, N) -> (N, K)."""
    targets = (classes[:, None] == np.arange(classes.max() + 1)[None]).astype(np.float64)
    scores = np.empty(targets.shape)
    for train, test in splits(patient_folds(patients, seed=seed)):
        places = principal_coordinates(similarities, train, components=COMPONENTS)
        scores[test] = predict(ridge(places[train], targets[train], penalty=PENALTY), places[test])
    return scores


def class_auc(scores: Sequence[Floats], truth: npt.NDArray[np.bool_], patients: Codes) -> Estimate:
    """Area under the ROC curve of images, whose patients weigh the same; averaged over several scorings, each (N,)."""
    drawn = resampled(int(patients.max()) + 1, seed=0)
    weights = drawn[:, patients] / np.bincount(patients)[patients]
    return summarised(np.mean([_areas(one, truth, weights) for one in scores], axis=0))


def _areas(scores: Floats, truth: npt.NDArray[np.bool_], weights: Floats) -> Floats:
    """(1 + R,): the area with each row of weights, (1 + R, N); NaN where a class has none."""
    values, place = np.unique(scores, return_inverse=True)
    positive, negative = (
        np.stack([np.bincount(place[mask], weights=row[mask], minlength=len(values)) for row in weights])
        for mask in (truth, ~truth)
    )
    below = np.cumsum(negative, axis=1) - negative / 2.0
    total = positive.sum(axis=1) * negative.sum(axis=1)
    areas: Floats = (positive * below).sum(axis=1) / np.where(total > 0, total, np.nan)
    return areas
