"""Composition of releases, against the closed form of averaging, and what is objected to."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from veilray.exchange.ledger.exposure import Given, composed_std, objection


def _given(std: float = 0.2, **other: Any) -> Given:
    values = {"release_id": "r", "mode": "noisy", "field": "f", "geometry": "g", "clip": True, "mean": 0.1}
    return Given(**{**values, "std": std, **other})


def test_independent_noise_composes_as_the_best_average_of_the_copies() -> None:
    stds = [0.1, 0.2, 0.3]
    rng = np.random.default_rng(1)
    copies = np.stack([rng.normal(0, std, 400_000) for std in stds])
    weights = np.array(stds) ** -2
    best = (weights / weights.sum()) @ copies
    composed = composed_std([_given(std, field=str(std)) for std in stds])
    assert best.std() == pytest.approx(composed, rel=0.005)


def test_levels_of_one_field_compose_to_the_least_noisy() -> None:
    assert composed_std([_given(0.3), _given(0.1), _given(0.2), _given(0.1)]) == pytest.approx(0.1)


def test_nothing_clean_pixels_and_models() -> None:
    assert composed_std([]) == math.inf
    assert composed_std([_given(mode="model-only", std=0)]) == math.inf
    assert composed_std([_given(), _given(mode="pairs")]) == 0


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from([0.1, 0.2, 0.3])), max_size=8), st.randoms())
@settings(max_examples=100)
def test_more_never_hides_more_and_order_does_not_matter(copies: list[tuple[str, float]], random: Any) -> None:
    all_given = [_given(std, field=field) for field, std in copies]
    whole = composed_std(all_given)
    for count in range(len(all_given)):
        assert composed_std(all_given[:count]) >= whole
    random.shuffle(all_given)
    assert composed_std(all_given) == pytest.approx(whole)


@pytest.mark.parametrize(
    "new",
    [
        _given(),
        _given(0.3),
        _given(0.3, clip=False, field="f"),
        _given(mode="model-only", geometry="other", field="other"),
    ],
)
def test_what_gives_nothing_further_away_is_not_objected_to(new: Given) -> None:
    earlier = [_given(), _given(0.2, clip=False)] if not new.clip else [_given()]
    assert objection(earlier, new) is None
    assert objection([], new) is None


@pytest.mark.parametrize(
    ("new", "reason"),
    [
        (_given(0.1), "0.2 to 0.1"),
        (_given(0.3, field="independent"), "0.2 to 0.166"),
        (_given(field="independent"), "0.2 to 0.141"),
        (_given(geometry="half"), "another geometry"),
        (_given(mode="pairs"), "void"),
        (_given(clip=False), "unclamped"),
        (_given(0.3, clip=False), "unclamped"),
        (_given(mean=-0.1), "another mean before (0.1; now -0.1)"),
        (_given(0.3, mean=-0.1), "another mean"),
    ],
)
def test_what_gives_more_away_is_objected_to(new: Given, reason: str) -> None:
    said = objection([_given()], new)
    assert said is not None
    assert reason in said


def test_two_means_undo_the_clamp_and_are_objected_to_like_none() -> None:
    rng = np.random.default_rng(2)
    whole = rng.uniform(0, 1, 100_000) + rng.normal(0, 0.2, 100_000)
    copies = {mean: np.clip(whole + mean, 0, 1) for mean in (-0.5, 0.5)}
    undone = np.where(copies[0.5] < 1, copies[0.5] - 0.5, copies[-0.5] + 0.5)
    assert np.mean(np.isclose(undone, whole)) > 0.999  # of the pixels of one copy, half are clamped
    assert objection([_given(mean=-0.5)], _given(mean=0.5)) is not None
    assert objection([_given(mean=-0.5), _given(clip=False)], _given(mean=0.5)) is None  # nothing is left to undo
    # A ledger of before did not keep means.
    assert "unknown" in (objection([_given(mean=None)], _given()) or "")
    assert objection([_given(mean=None, clip=False)], _given()) is None


def test_an_unclamped_level_covers_noisier_ones_only() -> None:
    earlier = [_given(0.2), _given(0.3, clip=False)]  # the second was overridden
    assert "unclamped" in (objection(earlier, _given(0.2, clip=False)) or "")
    assert objection(earlier, _given(0.3, clip=False)) is None
    assert objection(earlier, _given(0.4, clip=False, mean=0.0)) is None
    assert objection(earlier, _given(0.2)) is None
    assert objection(earlier, _given(0.25, mean=0.0)) is not None


def test_after_clean_pixels_only_another_geometry_gives_more_away() -> None:
    assert objection([_given(mode="pairs")], _given(0.1, field="independent", clip=False)) is None
    assert objection([_given(mode="pairs")], _given(geometry="larger")) is not None
