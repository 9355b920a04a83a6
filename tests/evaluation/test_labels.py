"""Labels: distinct where configurations differ, and no longer than needed."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from veilray.evaluation.compare import compare
from veilray.evaluation.labels import arm_labels, differing, flatten, noise_labels, percent
from veilray.obfuscation.config import NoiseConfig
from veilray.training.config import RunConfig


def settings(**options: Any) -> dict[str, str]:
    return flatten(RunConfig.model_validate(options))


def test_one_arm_is_named_by_its_architecture_and_width() -> None:
    assert arm_labels([settings(model={"name": "unetpp", "width": 16})]) == ["U-Net++, width 16"]


def test_a_difference_that_the_name_shows_adds_nothing() -> None:
    arms = [settings(model={"width": 16}), settings(model={"name": "unetpp", "width": 16}, train={"epochs": 3})]
    assert arm_labels(arms) == ["U-Net, width 16", "U-Net++, width 16"]


def test_a_variant_is_named_by_what_sets_it_apart() -> None:
    arms = [settings(), settings(model={"residual": True}), settings(train={"loss": "mse"})]
    labels = arm_labels(arms)
    assert labels[1] == "U-Net, width 64, residual"
    assert "L1" in labels[0]
    assert "MSE" in labels[2]


@pytest.mark.parametrize(
    "options",
    [
        {"model": {"depth": 3}},
        {"model": {"norm": "group"}},
        {"model": {"block": "conv-norm-relu-conv-norm-relu"}},
        {"noise": {"fresh": False}},
        {"train": {"learning_rate": 1.0001e-3}},
        {"train": {"schedule": "constant"}},
        {"train": {"warmup_steps": 7}},
        {"train": {"ema_decay": 0.0}},
        {"train": {"clip_norm": 0.0}},
        {"train": {"patience": 4}},
        {"train": {"flips": True}},
        {"launch": {"precision": "fp32"}},
        {"launch": {"layout": "contiguous"}},
        {"launch": {"compile": True}},
        {"split": {"rule": "paper"}},
    ],
)
def test_any_single_difference_gives_another_label(options: dict[str, Any]) -> None:
    plain, variant = arm_labels([settings(), settings(**options)])
    assert plain != variant
    assert len(differing(settings(), settings(**options))) == 1


def test_optimisers_and_their_weight_decay_are_told_apart() -> None:
    plain = settings(train={"optimizer": "adam"})
    decayed = [settings(train={"optimizer": "adamw", "weight_decay": decay}) for decay in (0.01, 0.1)]
    labels = arm_labels([plain, *decayed])
    assert len(set(labels)) == 3
    assert "AdamW" in labels[1]
    assert "0.1" in labels[2]


def test_a_key_without_a_phrase_of_its_own_still_tells_arms_apart() -> None:
    first, second = settings() | {"train.new_option": "2"}, settings() | {"train.new_option": "3"}
    assert arm_labels([first, second])[1].endswith("train.new_option 3")


def test_labels_of_many_arms_are_distinct_whatever_their_order() -> None:
    arms = [
        settings(model={"width": width, "residual": residual}, train={"loss": loss})
        for width in (8, 16)
        for residual in (False, True)
        for loss in ("l1", "mse")
    ]
    labels = arm_labels(arms)
    assert len(set(labels)) == len(arms)
    assert arm_labels(arms[::-1]) == labels[::-1]
    assert all(differing(first, second) for first, second in combinations(arms, 2))


def test_noise_is_written_in_per_cent() -> None:
    assert percent(NoiseConfig(std=0.2)) == "20\N{NO-BREAK SPACE}%"
    assert percent(NoiseConfig(std=(0.05, 0.4))) == "5–40\N{NO-BREAK SPACE}%"


def test_noise_labels_name_the_mean_where_the_std_is_not_enough() -> None:
    labels = noise_labels([NoiseConfig(mean=0.0), NoiseConfig(mean=0.1)])
    assert len(set(labels)) == 2
    assert "mean 0," in labels[0]


@pytest.mark.parametrize("machinery", [{"timeout_seconds": 900.0}, {"bucket_mb": 5.0}, {"share_device": True}])
def test_how_ranks_talk_makes_no_other_model(make_run: Callable[..., Path], machinery: dict[str, object]) -> None:
    runs = [make_run("a", seed=1), make_run("b", seed=2, launch=machinery)]
    assert [len(arm.runs) for arm in compare(runs).levels[0].models] == [2]
