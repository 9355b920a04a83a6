"""Which lives of a training go on with the run: after a stop and with another machine, but never with an older run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.distributed.faults import HELD, STEPS, told, words
from tests.distributed.harness import finish, start_torchrun
from tests.ports import free_port

from veilray.training.run import RunFolder
from veilray.training.state import checkpoints

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="a launcher's ranks are found in Linux's /proc"),
    pytest.mark.timeout(600),
]


def _await_checkpoint(run: RunFolder, launcher: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not checkpoints(run.checkpoints):
        assert time.monotonic() < deadline
        assert launcher.poll() is None
        time.sleep(0.02)


def _check_done(run: RunFolder, worlds: list[int]) -> None:
    """Trained to the end, each step once, in lives of so many ranks."""
    assert [life["world_size"] for life in run.environment()["lives"]] == worlds
    assert checkpoints(run.checkpoints)[-1].name == f"state-{STEPS:09d}.safetensors"
    assert [record.epoch for record in run.epochs()] == [1, 2, 3, 4, 5]


def test_a_machine_that_joins_is_trained_on_from_the_checkpoint(small_cohort: Path, tmp_path: Path) -> None:
    run, endpoint = RunFolder(tmp_path / "run"), f"--rdzv-endpoint=127.0.0.1:{free_port()}"
    machines = ["--nnodes=1:2", "--rdzv-backend=c10d", "--rdzv-id=grows", endpoint, "--local-addr=127.0.0.1"]
    launchers: list[subprocess.Popen[str]] = []
    for _ in range(2):
        launchers += [
            start_torchrun(
                *words(small_cohort, run.path),
                ranks=1,
                options=["--max-restarts=1"],
                program=[str(HELD)],
                machines=[*machines, "--rdzv-conf=last_call_timeout=1"],
                # Else torch 2.13's launchers do not find each other's store once one has come later.
                environment={"HELD": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
            )
        ]
        _await_checkpoint(run, launchers[0])
    ends = finish(launchers, timeout=280)
    said = "".join(end.err for end in ends)
    assert [end.status for end in ends] == [0, 0], said
    (line,) = [line for end in ends for line in told(end)]
    assert line.startswith("veilray: stopped after a checkpoint")
    assert "going on with ddp on 2 ranks" in said
    _check_done(run, [1, 2])


def test_a_rank_that_is_told_to_stop_as_when_machines_change_is_gone_on_with(
    small_cohort: Path, tmp_path: Path
) -> None:
    run = RunFolder(tmp_path / "run")
    # Here torchrun's store outlives the rank.
    launcher = start_torchrun(
        *words(small_cohort, run.path),
        ranks=1,
        options=["--max-restarts=1"],
        program=[str(HELD)],
        environment={"HELD": "1"},
    )
    _await_checkpoint(run, launcher)
    (rank,) = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    os.kill(int(rank), signal.SIGTERM)
    (end,) = finish([launcher])
    assert end.status == 0, end.err
    (line,) = told(end)
    assert line.startswith("veilray: stopped after a checkpoint")
    _check_done(run, [1, 1])


def test_a_life_that_ends_before_it_comes_to_the_folder_opens_no_older_run(small_cohort: Path, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    command = words(small_cohort, run.path)
    program = {"ranks": 1, "options": ["--max-restarts=1"], "program": [str(HELD)]}
    (end,) = finish([start_torchrun(*command, **program)])
    assert end.status == 0, end.err
    before = run.environment()
    (end,) = finish([start_torchrun(*command, **program, environment={"DIES": "1"})])
    assert end.status != 0
    (line,) = told(end)
    assert "already holds a run" in line
    assert run.environment() == before
