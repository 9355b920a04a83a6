"""Linkage succeeds where it must, fails where it must, and is what the closed form says in between."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from tests.privacy.phantoms import phantom_data

from veilray.privacy import linkage
from veilray.privacy.data import Budget
from veilray.privacy.linkage import check_closed_form
from veilray.privacy.results import AttackResult, Skipped, find_results
from veilray.privacy.variants import clean_variant, simulated_variant

QUICK = Budget(effort="quick", seconds=10.0)


def _run(*variants: object, data: object) -> list[AttackResult | Skipped]:
    return linkage.run(data, variants, budget=QUICK, seeds=(1,), progress=lambda _: None)  # type: ignore[arg-type]


@pytest.mark.slow
def test_the_published_noise_hides_no_original_from_who_has_it() -> None:
    data = phantom_data(32)
    outcomes = _run(clean_variant(data), simulated_variant(data, mean=0.1, std=0.3, seed=2), data=data)
    for one in find_results(outcomes, attack="linkage", metric="top_1"):
        assert one.value == 1.0
        assert one.low is not None
        assert one.low > 0.85
        assert one.predicted is None or one.predicted > 0.999


def test_overwhelming_noise_leaves_a_guess() -> None:
    data = phantom_data(32)
    noise = simulated_variant(data, mean=0.0, std=10.0, clip=False, seed=2)
    outcomes = _run(noise, data=data)
    (whole,) = find_results(outcomes, attack="linkage", metric="top_1")
    (patch,) = find_results(outcomes, attack="linkage", metric="top_1_patch_16")
    assert whole.value < 0.25
    assert patch.value < 0.2
    assert whole.chance == pytest.approx(1 / 32)


@pytest.mark.slow
@pytest.mark.parametrize("clip", [False, True])
def test_measured_is_predicted_where_it_is_not_trivial(clip: bool) -> None:
    data = phantom_data(48)
    noise = simulated_variant(data, mean=0.1, std=0.3, clip=clip, seed=3)
    checked = check_closed_form(data, noise, most=480, seed=1)
    assert checked is not None
    assert checked.repeats == 10
    assert 0.6 < checked.predicted.mean() < 0.95
    assert abs(checked.deviation) < 3.5


def test_a_wrong_prediction_is_noticed() -> None:
    data = phantom_data(48)
    noise = simulated_variant(data, mean=0.1, std=0.3, clip=False, seed=3)
    checked = check_closed_form(data, dataclasses.replace(noise, std=0.2), most=480, seed=1)
    assert checked is not None
    assert checked.deviation < -5.0


def test_a_release_of_some_images_is_linked_within_all() -> None:
    data = phantom_data(32)
    noise = dataclasses.replace(simulated_variant(data, mean=0.1, std=0.2, seed=2), rows=(3, 5, 8), draws=1)
    (whole,) = find_results(_run(noise, data=data), attack="linkage", metric="top_1")
    assert (whole.value, whole.n_images, whole.n_patients) == (1.0, 3, 3)
    assert whole.notes[0] == "from only 3 patients, fewer than 30"


def test_levels_that_differ_from_image_to_image_have_no_closed_form() -> None:
    data = phantom_data(32)
    noise = dataclasses.replace(simulated_variant(data, mean=0.1, std=0.2, seed=2), mixed=True)
    outcomes = _run(noise, data=data)
    assert not find_results(outcomes, attack="linkage", metric="top_1_checked")
    assert find_results(outcomes, attack="linkage", metric="top_1")[0].predicted is None
    assert any(isinstance(one, Skipped) and "closed form" in one.reason for one in outcomes)


def test_one_image_alone_is_not_attacked() -> None:
    data = phantom_data(1)
    (skipped,) = _run(clean_variant(data), data=data)
    assert isinstance(skipped, Skipped)
    assert "one image" in skipped.reason


def test_patches_that_are_all_black_are_no_success() -> None:
    data = phantom_data(32)
    black = dataclasses.replace(data, clean=lambda rows: np.zeros((len(rows), 64, 64), dtype=np.float32))
    outcomes = _run(clean_variant(black), data=black)
    (patch,) = find_results(outcomes, attack="linkage", metric="top_1_patch_16")
    assert patch.value == pytest.approx(1 / 32)
