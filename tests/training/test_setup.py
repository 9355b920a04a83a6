"""Set-ups: which one is taken, what is refused before the first step, what is said of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.training.small import small_config

from veilray.errors import UsageError
from veilray.models.build import build_model
from veilray.parallel.group import ALONE, Group
from veilray.training.config import RunConfig
from veilray.training.setup import Setup, check_batch, choose_setup, statements

CPU = torch.device("cpu")
TWO = Group(0, 2, 0, 2, "gloo")


def _config(setup: str = "auto", **changes: dict[str, object]) -> RunConfig:
    return small_config(**{**changes, "launch": {"setup": setup, **changes.get("launch", {})}})


@pytest.mark.parametrize(
    ("setup", "group", "name"),
    [
        ("auto", ALONE, "single"),
        ("auto", TWO, "ddp"),
        ("ddp", TWO, "ddp"),
        ("ddp", replace(TWO, world_size=1), "ddp"),
        ("auto", replace(TWO, world_size=1), "ddp"),
        ("single", replace(TWO, world_size=1), "single"),
        ("dp", ALONE, "dp"),
    ],
)
def test_the_set_up_is_what_is_asked_for_or_what_the_launcher_implies(setup: str, group: Group, name: str) -> None:
    assert choose_setup(_config(setup), group, CPU).name == name


@pytest.mark.parametrize(
    ("config", "group", "devices", "said"),
    [
        (_config("ddp"), ALONE, None, "add --devices N, or start under torchrun"),
        (_config("single"), TWO, None, "torchrun started 2"),
        (_config("dp"), TWO, None, "torchrun started 2"),
        (_config("dp"), ALONE, 2, "spreads each batch over GPUs, and there is none in use: the device is cpu"),
        (_config("single"), ALONE, 2, "launch.setup = 'single' is one device"),
        (_config("auto"), TWO, 2, "torchrun has started 2 ranks already"),
        (_config(train={"batch_size": 7}), TWO, None, "train.batch_size = 7 .* 2 devices; take 6 or 8"),
        (_config(train={"batch_size": 6, "accumulate": 2}), TWO, None, "2 devices x train.accumulate = 2; take 4 or 8"),
        (_config(launch={"compression": "bf16"}), ALONE, None, "setup 'ddp'"),
    ],
)
def test_what_cannot_be_is_refused(config: RunConfig, group: Group, devices: int | None, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        choose_setup(config, group, CPU, devices=devices)


def test_a_batch_smaller_than_the_ranks_names_the_smallest_that_fits() -> None:
    with pytest.raises(UsageError, match=r"over 4 devices; take 4$"):
        check_batch(_config(train={"batch_size": 3}), 4)
    check_batch(_config(train={"batch_size": 8}), 4)


def test_what_differs_is_said() -> None:
    def said(config: RunConfig, setup: Setup) -> str:
        return "\n".join(statements(config, setup, CPU))

    assert "DataParallel is the same as `single`" in said(_config("dp"), Setup("dp"))
    assert "different training" in said(_config("dp"), Setup("dp", ALONE, (0, 1)))
    assert "different training" not in said(_config("dp", model={"norm": "group"}), Setup("dp", ALONE, (0, 1)))
    assert "2 ranks over gloo, 4 images a rank and step" in said(_config(), Setup("ddp", TWO))
    assert "1/2 of each batch" in said(_config(train={"accumulate": 2}), Setup())
    assert "1/2 of each batch" in said(_config(train={"accumulate": 2}, model={"name": "dncnn", "depth": 5}), Setup())
    assert "batch normalisation" not in said(_config(train={"accumulate": 2}, model={"name": "nafnet"}), Setup())
    assert said(_config(), Setup()) == ""
    scaled = _config(train={"batch_size": 64, "learning_rate_scaling": "sqrt", "reference_batch_size": 16})
    assert "learning rate 0.01 at batch size 16, scaled (sqrt) to 0.02 at 64" in said(scaled, Setup())


@pytest.mark.parametrize(("scaling", "factor"), [("none", 1.0), ("linear", 4.0), ("sqrt", 2.0)])
def test_learning_rate_scaling(scaling: str, factor: float) -> None:
    train = {"batch_size": 64, "reference_batch_size": 16, "learning_rate": 0.01, "learning_rate_scaling": scaling}
    assert small_config(train=train).train.peak_learning_rate == pytest.approx(0.01 * factor)


def test_alone_nothing_is_wrapped() -> None:
    model = build_model(_config().model)
    assert Setup().prepare(model) is model
    assert Setup("dp").wrap(model, _config("dp"), on_gradients_ready=lambda: None) is model
