"""A training that begins from given weights: the very ones, checked, and read no more when it goes on."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.training.small import Recorder, small_config, train_here

from veilray.errors import RunError, UsageError
from veilray.files import sha256_file
from veilray.training.config import RunConfig
from veilray.training.run import RunFolder
from veilray.training.start import with_pinned_start
from veilray.training.state import checkpoints

STILL = 1e-12
"""A learning rate at which nothing moves."""


def _config(start: Path | str, **train: object) -> RunConfig:
    return with_pinned_start(small_config(train={"start": str(start), **train}))


@pytest.fixture(scope="module")
def before(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose weights another one begins from."""
    run = tmp_path_factory.mktemp("before") / "run"
    train_here(small_config(train={"epochs": 3}), cohort, run)
    return run


@pytest.mark.parametrize("ema_decay", [0.0, 0.5])
def test_a_training_begins_at_the_given_weights(cohort: Path, before: Path, tmp_path: Path, ema_decay: float) -> None:
    config = _config(before, learning_rate=STILL, epochs=1, ema_decay=ema_decay)
    assert config.train.start_sha256 == sha256_file(RunFolder(before).best_weights)
    train_here(config, cohort, tmp_path / "run")
    given, own = (load_file(run.best_weights) for run in (RunFolder(before), RunFolder(tmp_path / "run")))
    for name, value in given.items():
        if "running" not in name and "tracked" not in name:  # statistics follow the batches, whatever the rate
            torch.testing.assert_close(own[name], value, atol=1e-6, rtol=0)


def test_going_on_needs_the_file_no_more_and_ends_with_the_same_bits(
    cohort: Path, before: Path, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    shutil.copytree(before, source)
    config = _config(source)
    train_here(config, cohort, tmp_path / "whole")

    def interrupt(step: int) -> None:
        if step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    assert train_here(config, cohort, tmp_path / "parts", Recorder(interrupt)).interrupted
    shutil.rmtree(source)
    going_on = with_pinned_start(RunFolder(tmp_path / "parts").config())
    train_here(going_on, cohort, tmp_path / "parts")
    whole, parts = (load_file(checkpoints(tmp_path / name / "checkpoints")[-1]) for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_weights_of_another_architecture_are_refused(before: Path) -> None:
    with pytest.raises(UsageError, match=r"holds unet \(width 4.*asks for unet \(width 8"):
        with_pinned_start(small_config(model={"width": 8}, train={"start": str(before)}))
    with pytest.raises(UsageError, match="there is no model"):
        _config("nowhere")


def test_weights_that_changed_before_the_first_checkpoint_are_refused(
    cohort: Path, before: Path, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    shutil.copytree(before, source)
    config = _config(source)
    train_here(small_config(train={"epochs": 1}), cohort, tmp_path / "other")
    shutil.copy(RunFolder(tmp_path / "other").best_weights, RunFolder(source).best_weights)
    with pytest.raises(RunError, match="has changed since this run began"):
        train_here(config, cohort, tmp_path / "run")


def test_a_digest_alone_is_refused() -> None:
    with pytest.raises(ValueError, match="start_sha256 needs start"):
        small_config(train={"start_sha256": "0" * 64})
