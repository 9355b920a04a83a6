"""A batch in parts: slices of the one keyed batch, and gradients that pile up to the whole batch's."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.training.small import small_config
from torch import Tensor

from veilray.metrics.psnr import psnr
from veilray.models.build import build_model
from veilray.parallel.group import Group
from veilray.training import timing, validation
from veilray.training.config import RunConfig
from veilray.training.data import TrainingImages
from veilray.training.launch import resolved
from veilray.training.setup import Setup
from veilray.training.state import TrainingState
from veilray.training.step import Signals, Stepper
from veilray.training.timing import PARTS, PartClock

CPU = torch.device("cpu")


@pytest.mark.parametrize("crop", [0, 16])
@pytest.mark.parametrize("world_size", [1, 2, 5])
def test_slices_of_all_ranks_and_parts_are_the_batch(cohort: Path, world_size: int, crop: int) -> None:
    config = small_config(train={"batch_size": 10, "accumulate": 2, "crop": crop, "flips": True})
    images = TrainingImages.open(cohort, config)
    for index in range(images.steps_per_epoch()):
        whole = images.training_batch(1, index, CPU)
        ranks = [images.training_parts(1, index, CPU, Group(rank, world_size)) for rank in range(world_size)]
        assert {taken.images for taken in ranks} == {len(whole.rows)}
        assert {len(taken.parts) for taken in ranks} == {2}
        slices = [taken.parts[part] for part in range(2) for taken in ranks]
        assert np.array_equal(np.concatenate([one.rows for one in slices]), whole.rows)
        for name in ("noisy", "clean"):
            assert torch.equal(torch.cat([getattr(one, name) for one in slices]), getattr(whole, name))


@pytest.mark.parametrize("world_size", [2, 7, 30])
def test_held_out_images_are_shared_out_once_each(cohort: Path, world_size: int) -> None:
    images = TrainingImages.open(cohort, small_config())
    rows = [
        row
        for rank in range(world_size)
        for batch in images.held_out_batches("validation", CPU, batch_size=3, group=Group(rank, world_size))
        for row in batch.rows.tolist()
    ]
    assert sorted(rows) == sorted(images.sets["validation"].tolist())


def _gradients(config: RunConfig, cohort: Path) -> tuple[list[Tensor], dict[str, float]]:
    config = resolved(config, CPU)
    images, clock = TrainingImages.open(cohort, config), PartClock(CPU)
    torch.manual_seed(0)
    model = build_model(config.model)
    state = TrainingState(model, config.train, device=CPU, scale_loss=False)
    last = images.steps_per_epoch() - 1
    stepper = Stepper(state, config, Setup(), clock)
    stepper.take(images.training_parts(0, last, CPU), rate=0.0, signals=Signals())
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return gradients, clock.take()


def test_accumulated_gradients_are_those_of_the_whole_batch(cohort: Path) -> None:
    whole, _ = _gradients(small_config(model={"norm": "group"}, train={"batch_size": 9}), cohort)
    parts, _ = _gradients(small_config(model={"norm": "group"}, train={"batch_size": 9, "accumulate": 3}), cohort)
    distance = sum(float((a - b).square().sum()) for a, b in zip(whole, parts, strict=True))
    assert distance <= 1e-10 * sum(float(a.square().sum()) for a in whole)


def test_a_step_s_seconds_are_told_apart(cohort: Path) -> None:
    _, parts = _gradients(small_config(), cohort)
    assert set(parts) == set(PARTS)
    assert min(parts[name] for name in ("forward", "backward", "update")) > 0
    assert parts["all_reduce"] == parts["validation"] == parts["checkpoint"] == 0


def test_the_clock_owns_the_seconds_of_the_whole_and_those_since_a_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now)
    clock = PartClock(CPU)
    now = 160.0
    clock.start()
    now = 190.0
    clock.lap("forward")
    assert (clock.elapsed(), clock.elapsed(), clock.minutes_unsaved()) == (30.0, 0.0, 0.5)
    now = 250.0
    clock.lap("checkpoint")
    now = 280.0
    assert (clock.elapsed(), clock.minutes_unsaved()) == (90.0, 0.5)
    assert clock.take() == {**dict.fromkeys(PARTS, 0.0), "forward": 30.0, "checkpoint": 60.0}


@pytest.mark.parametrize(
    ("abilities", "launch", "layout"),
    [
        ({"avx2": True}, {}, "contiguous"),
        ({"avx2": True, "avx512_f": True}, {}, "channels_last"),
        ({"avx2": True}, {"precision": "bf16"}, "channels_last"),
        ({"avx2": True, "avx512_f": True}, {"layout": "contiguous"}, "contiguous"),
        ({}, {"layout": "channels_last"}, "channels_last"),
    ],
)
def test_the_layout_left_to_the_device_is_the_one_that_it_is_faster_in(
    abilities: dict[str, bool], launch: dict[str, str], layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: abilities)
    assert resolved(RunConfig.model_validate({"launch": launch}), CPU).launch.layout == layout


def test_what_validation_computes_of_its_outputs_is_told_apart(cohort: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pause, calls = 0.02, list[Tensor]()

    def slow(output: Tensor, target: Tensor, **options: Any) -> Tensor:
        time.sleep(pause)
        calls.append(output)
        return psnr(output, target, **options)

    monkeypatch.setattr(validation, "psnr", slow)
    config, clock = small_config(), PartClock(CPU)
    validation.validate(build_model(config.model), TrainingImages.open(cohort, config), config, CPU, clock=clock)
    parts = clock.take()
    assert calls
    assert parts["metrics"] >= pause * len(calls)
    assert parts["validation"] > 0
