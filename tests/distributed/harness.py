"""Runs N ranks on this machine: gloo on loopback, started as `torchrun` starts them, or by torchrun itself.

`run_ranks` gives each rank a script of Python and torchrun's environment, without the launcher's seconds; `torchrun`
starts the command line under the launcher. Both end what they started, at the latest after `timeout` seconds.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

import pytest
from tests.command_line import PROCESS, Finished
from tests.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "PYTHONUNBUFFERED": "1",
    "GLOO_SOCKET_IFNAME": "lo",
    "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
}


def start_ranks(
    commands: Sequence[Sequence[str]], *, port: int | None = None, environment: Mapping[str, str] | None = None
) -> list[subprocess.Popen[str]]:
    """Start one process for each command, rank by rank, in torchrun's environment; output in temporary files."""
    port = free_port() if port is None else port
    processes = []
    for rank, command in enumerate(commands):
        place = {
            "RANK": str(rank),
            "WORLD_SIZE": str(len(commands)),
            "LOCAL_RANK": str(rank),
            "LOCAL_WORLD_SIZE": str(len(commands)),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        processes.append(_start(command, {**os.environ, **ENVIRONMENT, **place, **(environment or {})}))
    return processes


def finish(processes: Sequence[subprocess.Popen[str]], *, timeout: float = 120.0) -> list[Finished]:
    """Wait for processes and return what they left; those that still run after `timeout` seconds are killed."""
    deadline = time.monotonic() + timeout
    late = []
    try:
        for number, process in enumerate(processes):
            try:
                process.wait(timeout=max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                late.append(number)
    finally:
        for process in processes:
            _kill(process)
    ends = [_left(process) for process in processes]
    said = "\n".join(f"process {number}, status {end.status}: {end.out}{end.err}" for number, end in enumerate(ends))
    assert not late, f"processes {late} still ran after {timeout:.0f} s; what all of them said:\n{said}"
    return ends


def run_ranks(
    script: str,
    ranks: int = 2,
    *,
    arguments: Sequence[object] = (),
    environment: Mapping[str, str] | None = None,
    timeout: float = 120.0,
) -> list[Finished]:
    """Run a script of Python on every rank, `arguments` in its sys.argv[1:]; what each left, by rank."""
    command = [sys.executable, "-W", "error", "-c", script, *(str(argument) for argument in arguments)]
    return finish(start_ranks([command] * ranks, environment=environment), timeout=timeout)


def veilray_ranks(
    *words: object, ranks: int = 2, environment: Mapping[str, str] | None = None, timeout: float = 120.0
) -> list[Finished]:
    """Run a command of Veilray on every rank; what each left, by rank."""
    command = [*PROCESS, *(str(word) for word in words)]
    return finish(start_ranks([command] * ranks, environment=environment), timeout=timeout)


def start_torchrun(
    *words: object,
    ranks: int = 2,
    options: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    program: Sequence[str] = ("-m", "veilray"),
    machines: Sequence[str] = ("--standalone",),
) -> subprocess.Popen[str]:
    """Start a command of Veilray under torchrun; finish it with `finish`.

    `program`: what each rank runs instead of Veilray itself. `machines`: torchrun's options for how launchers meet.
    """
    launcher = [sys.executable, "-m", "torch.distributed.run", *machines, f"--nproc-per-node={ranks}", *options]
    command = [*launcher, *program, *(str(word) for word in words)]
    return _start(command, {**os.environ, **ENVIRONMENT, **(environment or {})})


def torchrun(*words: object, ranks: int = 2, options: Sequence[str] = (), timeout: float = 120.0) -> Finished:
    """Run a command of Veilray under torchrun, on one machine."""
    return finish([start_torchrun(*words, ranks=ranks, options=options)], timeout=timeout)[0]


def _start(command: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[str]:
    # Files, because a pipe that nobody reads stops its writer.
    out, err = tempfile.TemporaryFile("w+"), tempfile.TemporaryFile("w+")  # noqa: SIM115
    process = subprocess.Popen(command, stdout=out, stderr=err, text=True, env=environment, start_new_session=True)
    _STARTED[process] = (out, err)
    return process


_STARTED: dict[subprocess.Popen[str], tuple[IO[str], IO[str]]] = {}
"""What was started and not yet finished, with where it writes."""


@pytest.fixture(autouse=True)
def _no_rank_outlives_its_test() -> Iterator[None]:
    """One that a failed test left behind would take cores and ports from the next tests."""
    yield
    for process in list(_STARTED):
        _kill(process)
        _left(process)


def _kill(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _left(process: subprocess.Popen[str]) -> Finished:
    texts = []
    for stream in _STARTED.pop(process):
        stream.seek(0)
        texts.append(stream.read())
        stream.close()
    return Finished(process.returncode, *texts)
