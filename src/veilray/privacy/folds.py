"""Patient-wise folds: whoever is attacked was never seen by the attacker that attacks them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from veilray.errors import DataError
from veilray.privacy.pairs import Codes

FOLDS = 5


def patient_folds(patients: Codes, *, folds: int = FOLDS, seed: int) -> Codes:
    """The fold of each image, (N,) from 0 to folds - 1: all images of one patient lie in one.

    Patients are dealt out at random, those with several images first, so that each fold gets its share of them.
    Raises DataError where there are fewer patients than folds.
    """
    counts = np.bincount(patients)
    present = np.flatnonzero(counts)
    if len(present) < folds:
        raise DataError(f"{len(present)} patients cannot be dealt into {folds} folds; audit more patients")
    shuffled = np.random.default_rng(seed).permutation(present)
    # A stable sort keeps the random order among the patients with several images, and among the others.
    dealt = shuffled[np.argsort(counts[shuffled] < 2, kind="stable")]
    fold_of = np.zeros(len(counts), dtype=np.int64)
    fold_of[dealt] = np.arange(len(dealt)) % folds
    return fold_of[patients]


def splits(fold_of: Codes) -> Iterator[tuple[Codes, Codes]]:
    """For each fold, the rows of all others and its own: what an attacker learns from, and what it is tried on."""
    for fold in np.unique(fold_of):
        yield np.flatnonzero(fold_of != fold), np.flatnonzero(fold_of == fold)
