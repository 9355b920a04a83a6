"""Attribute inference: what sex, view and age group an image gives away.

A ridge regression on the images' features, trained on other patients' images of the same variant.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from veilray.privacy.catalogue import ATTRIBUTES, REGRESSION
from veilray.privacy.data import AuditData, Progress, Variant
from veilray.privacy.embedding import predict, principal_coordinates, ridge
from veilray.privacy.extent import Extent
from veilray.privacy.features import Similarities
from veilray.privacy.folds import FOLDS, patient_folds, splits
from veilray.privacy.intervals import over_patients
from veilray.privacy.observing import Observer, chosen_rows
from veilray.privacy.pairs import Attributes, Codes, encode, patient_codes
from veilray.privacy.results import AttackResult, Skipped
from veilray.privacy.roc import Estimate, resampled, summarised

Floats = npt.NDArray[np.float64]

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
        self, data: AuditData, variant: Variant, *, extent: Extent, seeds: Sequence[int], progress: Progress
    ) -> list[AttackResult | Skipped]:
        """Infer sex, view and age group from a variant; Skipped where they are unknown or all alike."""
        found: list[AttackResult | Skipped] = []
        rows = chosen_rows(data, variant, extent=extent)
        patients = patient_codes([data.patient_ids[row] for row in rows])
        looks: Similarities | None = None
        for name, classes in _targets(encode(data.labels).take(rows)).items():
            reason = _impossible(classes, patients)
            if reason:
                found.append(Skipped(attack=ATTRIBUTES, variant=variant.name, reason=f"{name}: {reason}"))
                continue
            if looks is None:
                seen = self.observer.looks(data, variant, rows, extent=extent, progress=progress)
                looks = np.sum(list(seen.learned.values()), axis=0)
            progress(f"attributes: {name}")
            weakened = self.observer.weakened
            told = _Told(variant=variant.name, name=name, seeds=tuple(seeds), weakened=weakened)
            found += _infer(looks, classes, patients, told)
        return found


@dataclass(frozen=True, kw_only=True)
class _Told:
    variant: str
    name: str
    seeds: tuple[int, ...]
    weakened: str


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
    scored = [class_scores(inner, truth, owners, seed=seed) for seed in told.seeds]
    right = np.mean([one.said.argmax(axis=1) == truth for one in scored], axis=0)
    value, low, high = over_patients(right, owners, share=True)
    weights = 1.0 / np.bincount(owners)[owners]
    most = float(np.bincount(truth, weights=weights).max() / weights.sum())
    # The smallest class bounds what can be told.
    n_patients = min(len(np.unique(owners[truth == one])) for one in range(len(kept)))
    beside = (told.weakened, f"{n_patients} patients of the smallest class, {int(owners.max()) + 1} in all")

    def record(metric: str, figure: Estimate, *notes: str, chance: float) -> AttackResult:
        return AttackResult(
            attack=ATTRIBUTES,
            attacker=REGRESSION,
            weakened=told.weakened,
            variant=told.variant,
            metric=f"{told.name.replace(' ', '_')}_{metric}",
            unit="share" if metric == "accuracy" else "",
            value=figure.value,
            low=figure.low,
            high=figure.high,
            chance=chance,
            n_images=len(rows),
            n_patients=n_patients,
            seeds=told.seeds,
            notes=tuple(filter(None, [*notes, *beside])),
        )

    guessing = "chance: always the most frequent class"
    found = [record("accuracy", Estimate(value=value, low=low, high=high), guessing, chance=most)]
    if len(kept) == 2:
        found.insert(0, record("auc", class_auc(scored, truth == 1, owners, n_patients=n_patients), chance=0.5))
    return found


@dataclass(frozen=True, kw_only=True, eq=False)
class Scored:
    """How strongly each image says each class, by attackers that never saw its patient."""

    said: Floats
    """(N, K)"""
    fold_of: Codes
    """(N,): images of one fold were scored by one attacker."""


def class_scores(similarities: Similarities, classes: Codes, patients: Codes, *, seed: int) -> Scored:
    """By regressions on other patients' images: (N, N) similarities and (N,) classes and patients."""
    targets = (classes[:, None] == np.arange(classes.max() + 1)[None]).astype(np.float64)
    scores = np.empty(targets.shape)
    fold_of = patient_folds(patients, seed=seed)
    for train, test in splits(fold_of):
        places = principal_coordinates(similarities, train, components=COMPONENTS)
        scores[test] = predict(ridge(places[train], targets[train], penalty=PENALTY), places[test])
    return Scored(said=scores, fold_of=fold_of)


def class_auc(scored: Sequence[Scored], truth: npt.NDArray[np.bool_], patients: Codes, *, n_patients: int) -> Estimate:
    """Area under the ROC curve of two classes, averaged over several scorings; patients weigh the same.

    Images are compared within their fold, since attackers that learned from different patients have different scales.
    `n_patients`: of the smaller class.
    """
    drawn = resampled(int(patients.max()) + 1, seed=0)
    weights = drawn[:, patients] / np.bincount(patients)[patients]
    areas = [_areas(one.said[:, 1] - one.said[:, 0], truth, weights, one.fold_of) for one in scored]
    return summarised(np.mean(areas, axis=0), patients=n_patients)


def _areas(scores: Floats, truth: npt.NDArray[np.bool_], weights: Floats, fold_of: Codes) -> Floats:
    """(1 + R,): the area over pairs within folds with each row of weights, (1 + R, N); NaN where there is no pair."""
    found, total = np.zeros(len(weights)), np.zeros(len(weights))
    for fold in np.unique(fold_of):
        rows = fold_of == fold
        values, place = np.unique(scores[rows], return_inverse=True)
        positive, negative = (
            np.stack([np.bincount(place[mask], weights=row[mask], minlength=len(values)) for row in weights[:, rows]])
            for mask in (truth[rows], ~truth[rows])
        )
        below = np.cumsum(negative, axis=1) - negative / 2.0
        found += (positive * below).sum(axis=1)
        total += positive.sum(axis=1) * negative.sum(axis=1)
    areas: Floats = found / np.where(total > 0, total, np.nan)
    return areas
