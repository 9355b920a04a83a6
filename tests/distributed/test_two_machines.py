"""Two launchers of torchrun that meet by a c10d rendezvous, as on two machines; here both on one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.distributed.faults import LOST, STEPS, told, words
from tests.distributed.harness import finish, start_torchrun
from tests.ports import free_port

from veilray.training.run import RunFolder
from veilray.training.state import checkpoints

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="a launcher's ranks are found in Linux's /proc"),
]


def _start(cohort: Path, out: Path, *more: list[str], restarts: int) -> list[subprocess.Popen[str]]:
    """Start a training under two launchers with a rank each; `more`: what each is told besides."""
    endpoint = f"--rdzv-endpoint=127.0.0.1:{free_port()}"
    machines = ["--nnodes=2", "--rdzv-backend=c10d", "--rdzv-id=two", endpoint, "--local-addr=127.0.0.1"]
    command = words(cohort, out)
    return [
        start_torchrun(*command, *own, ranks=1, options=[f"--max-restarts={restarts}"], machines=machines)
        for own in more or ([], [])
    ]


def _kill_rank(launcher: subprocess.Popen[str]) -> None:
    (rank,) = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    os.kill(int(rank), signal.SIGKILL)


def test_a_rank_killed_on_one_machine_is_told_once_and_both_go_on(small_cohort: Path, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    launchers = _start(small_cohort, run.path, restarts=2)
    deadline = time.monotonic() + 120
    while not checkpoints(run.checkpoints):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    _kill_rank(launchers[1])
    ends = finish(launchers)
    said = "".join(end.err for end in ends)
    assert [end.status for end in ends] == [0, 0], said
    lines = [line for end in ends for line in told(end)]
    assert len(lines) == 1, said
    assert lines[0].startswith(LOST)
    assert "going on from step" in said
    assert checkpoints(run.checkpoints)[-1].name == f"state-{STEPS:09d}.safetensors"
    assert [record.epoch for record in run.epochs()] == [1, 2, 3, 4, 5]


def test_machines_that_are_told_different_things_end_with_one_message(small_cohort: Path, tmp_path: Path) -> None:
    ends = finish(_start(small_cohort, tmp_path / "run", [], ["--set", "train.learning_rate=0.0005"], restarts=1))
    assert all(end.status != 0 for end in ends)
    (line,) = [line for end in ends for line in told(end)]
    assert "has train.learning_rate = 0.0005" in line or "has 0.0005: give every rank" in line
    assert not (tmp_path / "run").exists()
