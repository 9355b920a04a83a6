"""Which pairs there are, and which of them metadata cannot tell apart."""

from __future__ import annotations

import numpy as np
import pytest

from veilray.errors import DataError
from veilray.privacy.data import Labels, no_labels
from veilray.privacy.pairs import all_pairs, encode, matched, patient_codes, with_follow_ups


def test_every_pair_is_there_once_and_knows_whose_it_is() -> None:
    patients = patient_codes(["b", "a", "b", "c", "b"])
    pairs = all_pairs(patients)
    listed = set(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True))
    assert len(listed) == len(pairs) == 10
    genuine = {(i, j) for (i, j), same in zip(sorted(listed), pairs.genuine, strict=True) if same}
    assert genuine == {(0, 2), (0, 4), (2, 4)}
    assert with_follow_ups(patients) == 1


def test_pairs_of_some_rows_keep_their_row_numbers() -> None:
    pairs = all_pairs(patient_codes(["a", "b", "a", "b"]), np.array([3, 1]))
    assert (pairs.first.tolist(), pairs.second.tolist(), pairs.genuine.tolist()) == ([1], [3], [True])


def test_matched_pairs_agree_in_sex_view_and_age() -> None:
    labels = Labels(
        sex=("F", "F", "M", "F", None),
        age=(50.0, 55.0, 50.0, 56.0, 50.0),
        view=("PA", "PA", "PA", "PA", "PA"),
    )
    attributes = encode(labels)
    assert attributes.known == ("sex", "age")  # everyone is PA: that tells nobody apart
    pairs = all_pairs(np.arange(5))
    kept = pairs.where(matched(pairs, attributes))
    # 0 and 3 are six years apart, 2 is a man, of 4 the sex is unknown.
    assert list(zip(kept.first.tolist(), kept.second.tolist(), strict=True)) == [(0, 1), (1, 3)]


def test_unknown_views_agree_with_nothing() -> None:
    labels = Labels(sex=(None,) * 3, age=(None,) * 3, view=("AP", "PA", None))
    pairs = all_pairs(np.arange(3))
    assert not matched(pairs, encode(labels)).any()


def test_without_labels_nothing_can_be_matched() -> None:
    with pytest.raises(DataError, match="labels"):
        matched(all_pairs(np.arange(3)), encode(no_labels(3)))
