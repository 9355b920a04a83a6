"""Linkage succeeds where it must, fails where it must, and is what the closed form says in between."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
from tests.privacy.phantoms import phantom_data

from veilray.images.radiograph import FloatImage
from veilray.privacy import linkage
from veilray.privacy.data import AuditData, Rows, Variant
from veilray.privacy.extent import QUICK
from veilray.privacy.linkage import check_closed_form
from veilray.privacy.results import AttackResult, Skipped, find_results
from veilray.privacy.variants import clean_variant, simulated_variant


def _run(*variants: Variant, data: AuditData, seeds: Sequence[int] = (1,)) -> list[AttackResult | Skipped]:
    found: list[AttackResult | Skipped] = []
    extent = dataclasses.replace(QUICK, checked=96)
    for one in variants:
        found += linkage.run(data, one, extent=extent, seeds=seeds, progress=lambda _: None)
    return found


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
    checked = check_closed_form(data, noise, most=480, seeds=(1,))
    assert checked is not None
    assert checked.repeats == 10
    assert 0.6 < checked.predicted.mean() < 0.95
    assert abs(checked.deviation) < 3.5


def test_a_wrong_prediction_is_noticed() -> None:
    data = phantom_data(48)
    noise = simulated_variant(data, mean=0.1, std=0.3, clip=False, seed=3)
    checked = check_closed_form(data, dataclasses.replace(noise, std=0.2), most=480, seeds=(1,))
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


def test_noise_of_the_audit_is_drawn_for_each_seed_and_a_release_once() -> None:
    data = phantom_data(32)
    noise = simulated_variant(data, mean=0.0, std=6.0, clip=False, seed=2)
    asked: list[int] = []

    def draw(rows: Rows, number: int) -> FloatImage:
        asked.append(number)
        return noise.draw(rows, number)

    for draws, numbers, seeds in ((None, {0, 1, 2}, (1, 2, 3)), (1, {0}, ())):
        asked.clear()
        found = _run(dataclasses.replace(noise, draw=draw, draws=draws), data=data, seeds=(1, 2, 3))
        (whole,) = find_results(found, attack="linkage", metric="top_1")
        assert set(asked) == numbers
        assert whole.seeds == seeds
        # The mean of so many draws of 32 images: no other shares can come about.
        assert (whole.value * 32 * len(numbers)) % 1 == pytest.approx(0.0, abs=1e-9)
        assert any(f"{'one draw' if draws else '3 draws'} of the noise" == note for note in whole.notes)


def test_where_no_patch_is_telling_nothing_is_compared() -> None:
    data = phantom_data(32)
    outcomes = _run(simulated_variant(data, mean=0.0, std=10.0, clip=False, seed=2), data=data)
    assert not find_results(outcomes, attack="linkage", metric="top_1_checked")
    assert any("predicted success from 0.6 to 0.95" in one.reason for one in outcomes if isinstance(one, Skipped))


def test_what_is_compared_says_how_far_off_it_is() -> None:
    data = phantom_data(32)
    found = _run(simulated_variant(data, mean=0.1, std=0.3, seed=3), data=data)
    (checked,) = find_results(found, attack="linkage", metric="top_1_checked")
    assert checked.predicted is not None
    assert 0.6 <= checked.predicted <= 0.95
    assert checked.deviation is not None
    assert abs(checked.deviation) < 4.0
    (whole,) = find_results(found, attack="linkage", metric="top_1")
    assert whole.predicted_at_least
    assert not checked.predicted_at_least
