"""Checkpoints written in the background: of the moment they were asked for, one at a time, errors told."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from unittest import mock

import pytest
import torch
from tests.training.small import small_config

from veilray.errors import CutShortError, VeilrayError
from veilray.models.build import build_model
from veilray.models.weights import load_weights
from veilray.training import state as state_module
from veilray.training.run import RunFolder
from veilray.training.state import KEPT, TrainingState, checkpoints
from veilray.training.writer import CheckpointWriter

CPU = torch.device("cpu")
NOISE = small_config().noise


def _state(decay: float = 0.5) -> TrainingState:
    config = small_config(train={"ema_decay": decay})
    torch.manual_seed(0)
    return TrainingState(build_model(config.model), config.train, device=CPU, scale_loss=False)


def _step(state: TrainingState) -> None:
    state.optimizer.zero_grad()
    state.model(torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(state.counters.step))).sum().backward()
    state.optimizer.step()
    state.counters.take(loss=0.5, images=2, seconds=0.1)
    state.average.update(state.model, step=state.counters.step)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "run", small_config())


class _Gate:
    """Holds writes up until it is opened."""

    def __init__(self) -> None:
        self.begun, self.open = threading.Event(), threading.Event()
        self._write = state_module.write_tensors

    def __call__(self, *arguments: object) -> None:
        self.begun.set()
        assert self.open.wait(30)
        self._write(*arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("decay", [0.5, 0.0])
def test_a_checkpoint_is_of_the_moment_it_was_asked_for(run: RunFolder, decay: float) -> None:
    state, gate = _state(decay), _Gate()
    _step(state)
    expected = {name: value.clone() for name, value in state._tensors()}
    averaged = {name: value.clone() for name, value in state.average.model.state_dict().items()}
    with mock.patch.object(state_module, "write_tensors", gate), CheckpointWriter(run, noise=NOISE) as writer:
        writer.save(state, best=True)
        assert gate.begun.wait(30)
        _step(state)  # goes on while the file is being written
        gate.open.set()
        writer.finish()
    restored = _state(decay)
    restored.restore(checkpoints(run.checkpoints)[0])
    assert restored.counters.step == 1
    for name, value in restored._tensors():
        assert torch.equal(value, expected[name]), name
    best = load_weights(run.best_weights)
    assert best.noise == NOISE
    assert all(torch.equal(best.tensors[name], value) for name, value in averaged.items())
    assert torch.equal(next(iter(expected.values())), expected["model/" + next(iter(averaged))])


def test_one_write_at_a_time_and_the_last_two_are_kept(run: RunFolder) -> None:
    state, gate = _state(), _Gate()
    with mock.patch.object(state_module, "write_tensors", gate), CheckpointWriter(run, noise=NOISE) as writer:
        _step(state)
        writer.save(state, best=False)
        assert gate.begun.wait(30)
        _step(state)
        second = threading.Thread(target=writer.save, args=[state], kwargs={"best": False})
        second.start()
        time.sleep(0.1)
        assert second.is_alive(), "the second write waits for the first"
        gate.open.set()
        second.join(30)
        for _ in range(3):
            _step(state)
            writer.save(state, best=False)
    assert [path.name for path in checkpoints(run.checkpoints)] == [
        f"state-{step:09d}.safetensors" for step in range(6 - KEPT, 6)
    ]
    assert {path.name for path in run.checkpoints.iterdir()} == {path.name for path in checkpoints(run.checkpoints)}
    assert not run.best_weights.exists()


def test_a_full_disk_is_told_and_leaves_the_checkpoint_before_it(run: RunFolder) -> None:
    state = _state()
    _step(state)
    with CheckpointWriter(run, noise=NOISE) as writer:
        writer.save(state, best=False)
        writer.finish()
        assert writer.failure is None
        _step(state)
        full = OSError(errno.ENOSPC, "No space left on device")
        with mock.patch("veilray.models.tensors.save_file", side_effect=full):
            writer.save(state, best=False)
            with pytest.raises(VeilrayError, match="no space left on device"):
                writer.finish()
        assert isinstance(writer.failure, VeilrayError)
        with pytest.raises(VeilrayError, match="no space left"):
            writer.save(state, best=False)
    (left,) = run.checkpoints.iterdir()
    restored = _state()
    restored.restore(left)
    assert restored.counters.step == 1


WRITES = """
import sys, torch
from pathlib import Path
from tests.training.test_writer import NOISE, _state, _step
from veilray.training.run import RunFolder
from veilray.training.writer import CheckpointWriter
state, run = _state(), RunFolder(Path(sys.argv[1]))
torch.set_num_threads(1)
with CheckpointWriter(run, noise=NOISE) as writer:
    print("ready", flush=True)
    while True:
        _step(state)
        writer.save(state, best=True)
"""


@pytest.mark.slow
def test_killed_anywhere_it_leaves_a_checkpoint_that_is_whole(run: RunFolder) -> None:
    for pause in (0.05, 0.2):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITES, str(run.path)], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
        )
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            deadline = time.monotonic() + 60
            while not checkpoints(run.checkpoints) and time.monotonic() < deadline:
                time.sleep(0.005)
            time.sleep(pause)
        finally:
            os.kill(process.pid, signal.SIGKILL)
            process.communicate()
        found = checkpoints(run.checkpoints)
        assert 1 <= len(found) <= KEPT + 1
        for path in found:
            try:
                _state().restore(path)
            except CutShortError as error:
                pytest.fail(f"killed after {pause} s: {error}")
        load_weights(run.best_weights)
