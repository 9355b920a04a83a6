"""Effects of factors against numbers worked out by hand, and time saved against the published table."""

from __future__ import annotations

import math

import pytest
from scipy import stats
from tests.evaluation.records import make_record

from veilray.evaluation.benchmark.effects import SPEED, factor_effects, pooled, savings


def test_an_effect_on_speed_is_the_geometric_mean_ratio_of_pairs() -> None:
    # Pairs by hand: U-Net 10 -> 20 (seed 1), 10 -> 40 (seed 2); U-Net++ 4 -> 4 (seed 1), 5 -> 20 (seed 2).
    speeds = {
        ("unet", "single", 1): 10.0,
        ("unet", "single", 2): 10.0,
        ("unet", "ddp:2", 1): 20.0,
        ("unet", "ddp:2", 2): 40.0,
        ("unetpp", "single", 1): 4.0,
        ("unetpp", "single", 2): 5.0,
        ("unetpp", "ddp:2", 1): 4.0,
        ("unetpp", "ddp:2", 2): 20.0,
    }
    records = [
        make_record(model=model, setup=setup, seed=seed, speed=speed) for (model, setup, seed), speed in speeds.items()
    ]
    effects = {effect.factor: effect for effect in factor_effects(records)}
    setup = effects["setup"]
    assert (setup.reference, setup.level, setup.also) == ("single", "ddp:2", ())
    speed = setup.measures[SPEED]
    # log2 of the ratios: (1, 2) and (0, 2); means 1.5 and 1; mean 1.25. Squares within: 0.5 + 2 = 2.5 at 2 degrees.
    assert math.log2(speed.mean) == pytest.approx(1.25)
    half = stats.t.ppf(0.975, 2) * math.sqrt(2.5 / 2 * (1 / 2 + 1 / 2)) / 2
    assert speed.low is not None
    assert speed.high is not None
    assert math.log2(speed.low) == pytest.approx(1.25 - half)
    assert math.log2(speed.high) == pytest.approx(1.25 + half)
    assert (speed.pairs, speed.combinations, speed.seeds) == (4, 2, 2)
    assert math.log2(speed.smallest) == pytest.approx(1.0)
    assert math.log2(speed.largest) == pytest.approx(1.5)
    assert set(effects) == {"model", "setup"}


def test_an_effect_on_quality_is_a_mean_difference_and_speed_does_not_enter() -> None:
    records = [
        make_record(precision=precision, seed=seed, psnr=psnr, speed=speed)
        for precision, seed, psnr, speed in (
            ("fp32", 1, 30.0, 10.0),
            ("fp32", 2, 31.0, 10.0),
            ("bf16", 1, 29.9, 30.0),
            ("bf16", 2, 30.7, 30.0),
        )
    ]
    (effect,) = factor_effects(records)
    quality = effect.measures["psnr"]
    assert quality.mean == pytest.approx(-0.2)
    # The differences are -0.1 and -0.3: standard error 0.1, one degree of freedom.
    assert quality.low == pytest.approx(-0.2 - 0.1 * stats.t.ppf(0.975, 1))
    assert effect.measures[SPEED].mean == pytest.approx(3.0)
    assert effect.measures[SPEED].low == pytest.approx(3.0)
    assert "lpips" not in effect.measures


def test_runs_without_a_partner_do_not_enter() -> None:
    records = [
        make_record(layout="contiguous", seed=1, speed=10.0),
        make_record(layout="channels_last", seed=1, speed=12.0),
        make_record(layout="channels_last", seed=2, speed=99.0),
        make_record(layout="contiguous", seed=2, status="failed"),
    ]
    (effect,) = factor_effects(records)
    speed = effect.measures[SPEED]
    assert speed.mean == pytest.approx(1.2)
    assert (speed.pairs, speed.low, speed.high) == (1, None, None)


def test_settings_that_change_along_are_named() -> None:
    records = [
        make_record(setup="single"),
        make_record(setup="ddp:2", config={"train": {"batch_size": 64}, "launch": {"precision": "fp16"}}),
    ]
    (effect,) = factor_effects(records)
    assert set(effect.also) == {"train.batch_size", "launch.precision"}
    (saving,) = savings(records)
    assert saving.also == effect.also


def test_several_processes_are_held_against_one_device_wherever_the_plan_names_it() -> None:
    records = [make_record(setup="ddp:2", speed=15.0), make_record(setup="single", speed=10.0)]
    (effect,) = factor_effects(records)
    assert (effect.reference, effect.level) == ("single", "ddp:2")
    assert effect.measures[SPEED].mean == pytest.approx(1.5)


# Seconds and time saved of the published table: noise, model, one GPU, two GPUs, per cent.
PUBLISHED = [
    ("0.1", "unet", "dp:2", 7328.2, 4665.2, 36.34),
    ("0.1", "unet", "ddp:2", 7328.2, 2737.0, 62.68),
    ("0.1", "unetpp", "dp:2", 22717.1, 12003.0, 47.16),
    ("0.1", "unetpp", "ddp:2", 22717.1, 8025.0, 64.67),
    ("0.2", "unet", "dp:2", 7326.1, 4648.1, 36.55),
    ("0.3", "unetpp", "dp:2", 22343.5, 12015.6, 46.22),
]


@pytest.mark.parametrize(("noise", "model", "setup", "single", "several", "per_cent"), PUBLISHED)
def test_time_saved_as_published(
    noise: str, model: str, setup: str, single: float, several: float, per_cent: float
) -> None:
    records = [
        make_record(noise=noise, model=model, seconds=single),
        make_record(noise=noise, model=model, setup=setup, seconds=several, config={"train": {"batch_size": 64}}),
    ]
    (saving,) = savings(records)
    assert saving.published is not None
    # The table prints seconds rounded: its 62.68 % is 62.65 % of them.
    assert 100 * saving.published == pytest.approx(per_cent, abs=0.05)


def test_the_published_definition_passes_over_the_other_factors_and_ours_does_not() -> None:
    seconds = {("single", "fp32"): 100.0, ("single", "fp16"): 60.0, ("ddp:2", "fp32"): 80.0, ("ddp:2", "fp16"): 40.0}
    records = [
        make_record(setup=setup, precision=precision, seconds=value) for (setup, precision), value in seconds.items()
    ]
    found = {saving.levels["precision"]: saving for saving in savings(records)}
    assert found["fp16"].published == pytest.approx(0.6)
    saved, speedup = found["fp16"].saved, found["fp16"].speedup
    assert saved is not None
    assert speedup is not None
    assert saved.mean == pytest.approx(1 - 40 / 60)
    assert speedup.mean == pytest.approx(1.5)
    assert found["fp32"].published == pytest.approx(0.2)


def test_time_saved_is_by_epoch_where_one_training_stopped_early() -> None:
    records = [make_record(seconds=100.0, epochs=10), make_record(setup="ddp:2", seconds=30.0, epochs=5)]
    (saving,) = savings(records)
    assert saving.speedup is not None
    assert saving.speedup.mean == pytest.approx(10 / 6)


def test_pooling_agrees_with_an_analysis_of_variance() -> None:
    blocks = [[1.0, 3.0, 2.0], [5.0, 9.0, 4.0], [0.0, 1.0, 0.5]]
    mean, half = pooled(blocks)
    residual = sum(stats.tvar(block) * (len(block) - 1) for block in blocks) / 6
    assert mean == pytest.approx(sum(sum(block) for block in blocks) / 9)
    assert half == pytest.approx(stats.t.ppf(0.975, 6) * math.sqrt(residual / 9))
    one, width = pooled(blocks, only=1)
    assert one == pytest.approx(6.0)
    assert width == pytest.approx(stats.t.ppf(0.975, 6) * math.sqrt(residual / 3))
    assert pooled([[1.0], [2.0]]) == (1.5, None)
