"""Patient-wise folds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from veilray.errors import DataError
from veilray.privacy.folds import patient_folds, splits


@settings(max_examples=30)
@given(st.lists(st.integers(0, 30), min_size=40, max_size=120), st.integers(0, 2**31))
def test_no_patient_is_on_both_sides_and_every_image_is_tried_once(patients: list[int], seed: int) -> None:
    codes = np.unique(np.array([*patients, *range(5)]), return_inverse=True)[1]
    folds = patient_folds(codes, seed=seed)
    tried = np.concatenate([test for _, test in splits(folds)])
    assert sorted(tried.tolist()) == list(range(len(codes)))
    for train, test in splits(folds):
        assert not set(codes[train]) & set(codes[test])


def test_patients_with_follow_ups_are_spread_over_the_folds() -> None:
    codes = np.concatenate([np.arange(100), np.arange(20)])
    folds = patient_folds(codes, seed=3)
    several = folds[100:]
    assert np.bincount(several).tolist() == [4] * 5
    assert np.bincount(folds[:100]).tolist() == [20] * 5


def test_the_seed_alone_decides() -> None:
    codes = np.repeat(np.arange(40), 2)
    assert (patient_folds(codes, seed=1) == patient_folds(codes, seed=1)).all()
    assert (patient_folds(codes, seed=1) != patient_folds(codes, seed=2)).any()


def test_fewer_patients_than_folds_are_refused() -> None:
    with pytest.raises(DataError, match="4 patients"):
        patient_folds(np.arange(4), seed=0)
