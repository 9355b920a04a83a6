"""Pairs of images for re-identification: of one patient (genuine), or of two (impostors) whose metadata may agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from veilray.errors import DataError
from veilray.privacy.data import Labels

Codes = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

AGE_WINDOW = 5.0
"""Years by which the ages of a matched pair may differ."""

_UNKNOWN = -1
_SHARE_WITH_FOLLOW_UPS = 0.75


@dataclass(frozen=True, kw_only=True, eq=False)
class Pairs:
    """Pairs of images, each once, the lower row first."""

    first: Codes
    """(M,): rows."""
    second: Codes
    """(M,): rows."""
    genuine: Mask
    """(M,): whether both are of one patient."""

    def __len__(self) -> int:
        return len(self.first)

    def where(self, mask: Mask) -> Pairs:
        """The pairs that `mask`, (M,), picks."""
        return Pairs(first=self.first[mask], second=self.second[mask], genuine=self.genuine[mask])


@dataclass(frozen=True, kw_only=True, eq=False)
class Attributes:
    """Sex, view and age of N images as numbers."""

    sex: Codes
    """(N,): a code; -1 where it is unknown."""
    view: Codes
    """(N,): a code; -1 where it is unknown."""
    age: npt.NDArray[np.float64]
    """(N,): years; NaN where it is unknown."""

    @property
    def known(self) -> tuple[str, ...]:
        """Which of them differ at all among the images, so that they could tell two patients apart."""
        names = [name for name in ("sex", "view") if len(np.unique(_known(getattr(self, name)))) > 1]
        ages = self.age[np.isfinite(self.age)]
        return (*names, "age") if len(np.unique(ages)) > 1 else tuple(names)

    def take(self, rows: Codes) -> Attributes:
        """Those of some rows."""
        return Attributes(sex=self.sex[rows], view=self.view[rows], age=self.age[rows])


def patient_codes(patient_ids: Sequence[str]) -> Codes:
    """Patients as numbers from 0, by name: N names -> (N,)."""
    return np.unique(np.asarray(patient_ids), return_inverse=True)[1].astype(np.int64)


def encode(labels: Labels) -> Attributes:
    """Labels as numbers."""
    ages = [np.nan if age is None else float(age) for age in labels.age]
    return Attributes(sex=_codes(labels.sex), view=_codes(labels.view), age=np.array(ages, dtype=np.float64))


def all_pairs(patients: Codes, rows: Codes | None = None) -> Pairs:
    """Every pair of the images in `rows` (all of them if left out), of one patient and of two."""
    chosen = np.arange(len(patients)) if rows is None else np.sort(rows)
    first, second = np.triu_indices(len(chosen), k=1)
    first, second = chosen[first], chosen[second]
    return Pairs(first=first, second=second, genuine=patients[first] == patients[second])


def matched(pairs: Pairs, attributes: Attributes) -> Mask:
    """Which pairs agree in whatever is known: the same sex, the same view, ages within 5 years; (M,).

    A pair of which one of these is unknown is not matched, unless it is known of no image at all. Both genuine and
    impostor pairs are judged alike. Metadata still tell some of the matched ones apart, since the two ages of one
    patient mostly lie closer together than those of two: the attacker without pixels says how many. Raises DataError
    where nothing is known that could tell patients apart.
    """
    known = attributes.known
    if not known:
        raise DataError("neither sex nor view nor age is known of the images; give their labels")
    agree = np.ones(len(pairs), dtype=np.bool_)
    for name in known:
        if name == "age":
            agree &= np.abs(attributes.age[pairs.first] - attributes.age[pairs.second]) <= AGE_WINDOW
        else:
            codes = getattr(attributes, name)
            agree &= (codes[pairs.first] == codes[pairs.second]) & (codes[pairs.first] != _UNKNOWN)
    return agree


def with_follow_ups(patients: Codes) -> int:
    """How many patients have two images or more."""
    return int(np.count_nonzero(np.bincount(patients) > 1)) if len(patients) else 0


def whole_patients(rows: Codes, patient_ids: Sequence[str], *, most: int, seed: int) -> Codes:
    """At most `most` of the rows, ascending, as whole patients at random; `patient_ids` are those of all N images.

    Three quarters of the images come from patients who have several, where there are so many: only they have pairs.
    """
    if len(rows) <= most:
        return rows
    patients = patient_codes([patient_ids[row] for row in rows.tolist()])
    counts = np.bincount(patients)
    order = np.random.default_rng(seed).permutation(len(counts))
    several, single = order[counts[order] > 1], order[counts[order] == 1]
    first = several[np.cumsum(counts[several]) <= _SHARE_WITH_FOLLOW_UPS * most]
    others = np.concatenate([single, several[len(first) :]])
    taken = np.concatenate([first, others[np.cumsum(counts[others]) <= most - counts[first].sum()]])
    chosen: Codes = rows[np.isin(patients, taken)]
    return chosen


def _codes(values: Sequence[str | None]) -> Codes:
    names = sorted({value for value in values if value is not None})
    return np.array([_UNKNOWN if value is None else names.index(value) for value in values], dtype=np.int64)


def _known(codes: Codes) -> Codes:
    known: Codes = codes[codes != _UNKNOWN]
    return known
