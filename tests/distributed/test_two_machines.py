"""Two launchers of torchrun that meet by a c10d rendezvous, as on two machines; here both on one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from tests.distributed.faults import BEFORE_THE_END, HELD, LOST, STEPS, told, words
from tests.distributed.harness import finish, start_torchrun
from tests.ports import free_port

from veilray.training.run import RunFolder
from veilray.training.state import checkpoints

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="a launcher's ranks are found in Linux's /proc"),
    pytest.mark.timeout(600),
]


def _start(
    cohort: Path,
    out: Path,
    *more: list[str],
    restarts: int,
    program: Sequence[str] = ("-m", "veilray"),
    host: int = 0,
    environments: Sequence[Mapping[str, str]] = ({}, {}),
) -> list[subprocess.Popen[str]]:
    """Start a training under two launchers with a rank each; `more`: what each is told besides.

    `host`: which of them holds the store in which the launchers meet; that of the ranks is held by rank 0's.
    """
    endpoint = f"--rdzv-endpoint=127.0.0.1:{free_port()}"
    machines = ["--nnodes=2", "--rdzv-backend=c10d", "--rdzv-id=two", endpoint, "--local-addr=127.0.0.1"]
    command, options = words(cohort, out), [f"--max-restarts={restarts}"]
    return [
        start_torchrun(
            *command,
            *own,
            ranks=1,
            options=[*options, f"--rdzv-conf=is_host={int(number == host)}"],
            machines=machines,
            program=program,
            environment=environments[number],
        )
        for number, own in enumerate(more or ([], []))
    ]


_LATE = """
import os, pathlib, time
from veilray.cli.main import run
if os.environ["RANK"] == "1":
    started = pathlib.Path(__file__).with_suffix(".started")
    if started.exists():
        time.sleep(2)
    started.touch()
run()
"""


def _kill_rank(launcher: subprocess.Popen[str]) -> None:
    (rank,) = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    os.kill(int(rank), signal.SIGKILL)


def test_a_rank_killed_on_one_machine_is_told_once_and_both_go_on(small_cohort: Path, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    held = {"HELD": "2", "HELD_BEFORE": str(BEFORE_THE_END)}  # the one that is to be killed
    launchers = _start(small_cohort, run.path, restarts=2, program=[str(HELD)], environments=[{}, held])
    deadline = time.monotonic() + 120
    while not checkpoints(run.checkpoints):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    _kill_rank(launchers[1])
    ends = finish(launchers, timeout=280)
    said = "".join(end.err for end in ends)
    assert [end.status for end in ends] == [0, 0], said
    lines = [line for end in ends for line in told(end)]
    assert len(lines) == 1, said
    assert lines[0].startswith(LOST)
    assert "going on from step" in said
    assert checkpoints(run.checkpoints)[-1].name == f"state-{STEPS:09d}.safetensors"
    assert [record.epoch for record in run.epochs()] == [1, 2, 3, 4, 5]


def test_machines_that_are_told_different_things_end_with_one_message(small_cohort: Path, tmp_path: Path) -> None:
    # The restarted rank of the second machine comes when rank 0 knows that all is over, and the launchers still meet
    # in the second one's store: only the ranks' own would be gone.
    late = tmp_path / "late.py"
    late.write_text(_LATE)
    different = ([], ["--set", "train.learning_rate=0.0005"])
    launchers = _start(small_cohort, tmp_path / "run", *different, restarts=1, program=[str(late)], host=1)
    ends = finish(launchers, timeout=280)
    assert all(end.status != 0 for end in ends)
    (line,) = [line for end in ends for line in told(end)]
    assert "has train.learning_rate = 0.0005" in line or "has 0.0005: give every rank" in line
    assert not (tmp_path / "run").exists()
