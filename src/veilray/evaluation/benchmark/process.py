"""Trainings as processes of their own, and one benchmark at a time in a folder."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from veilray.errors import UsageError

_STARTED = "-- training started by veilray benchmark, "
"""What a log says before each training, and nothing else in it does."""
_SECONDS_TO_STOP = 120.0
_TAIL_BYTES = 4096

# Where the benchmark is killed outright, Linux tells its training to stop, which then writes a checkpoint first.
_CHILD = """
import os, signal, sys
parent = int(sys.argv.pop(1))
if sys.platform == "linux":
    import ctypes
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        sys.exit(1)
from veilray.cli.main import run
run()
"""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a training's process ended."""

    status: int
    seconds: float
    message: str
    """The last error that it printed, without the name of the program; empty where it printed none."""


@contextlib.contextmanager
def locked(folder: Path, *, wait_s: float, note: Callable[[str], None]) -> Iterator[IO[bytes]]:
    """Hold a folder's lock, so that two benchmarks, or one and the training that an earlier one left, don't meet.

    The training inherits the lock: where the benchmark was killed, the folder is free when its training has stopped.
    Waits `wait_s` seconds for that; UsageError after them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("ab") as stream:
        deadline, told = time.monotonic() + wait_s, False
        while True:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise UsageError(
                        f"another benchmark, or a training that it started, is at work in {folder}; wait until it has "
                        "ended, or name another folder"
                    ) from None
                if not told:
                    note(f"waiting for the benchmark or training that is at work in {folder}")
                    told = True
                time.sleep(0.2)
        yield stream


def count_start(log: Path, *, earlier: int = 0) -> int:
    """Write into a training's log that it is about to start, and return how often it has been started with this time.

    What was killed leaves no record, but its line. `earlier`: how often at least it was started before.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    said = log.read_bytes() if log.is_file() else b""
    line = re.compile(rb"^%sattempt (\d+)" % re.escape(_STARTED.encode()), re.MULTILINE)
    number = 1 + max(earlier, 0, *(int(attempt) for attempt in line.findall(said)))
    with log.open("ab") as stream:
        line_end = "\n" if said and not said.endswith(b"\n") else ""  # of a line that a kill has broken off
        now = datetime.now(UTC).isoformat(timespec="seconds")
        stream.write(f"{line_end}{_STARTED}attempt {number}, {now}\n".encode())
    return number


def run_process(arguments: Sequence[str], *, log: Path, lock: IO[bytes]) -> Ended:
    """Run a command of Veilray as a process of its own; what it prints goes to the end of `log`.

    Ctrl-C and SIGTERM are passed on once, and the process may write its checkpoint before KeyboardInterrupt is raised
    here; a second Ctrl-C ends it at once.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    with log.open("ab") as stream:
        begins = stream.tell()
        process = subprocess.Popen(
            [sys.executable, "-c", _CHILD, str(os.getpid()), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a terminal's Ctrl-C would reach it twice otherwise
            pass_fds=[lock.fileno()],
        )
        try:
            status = process.wait()
        except BaseException:
            _stop(process)
            raise
    with log.open("rb") as stream:
        stream.seek(max(begins, log.stat().st_size - _TAIL_BYTES))
        tail = stream.read().decode("utf-8", errors="replace")
    return Ended(status=status, seconds=time.perf_counter() - started, message=_error_in(tail))


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ask a process to stop, and end it and all it started where it does not."""
    try:
        process.send_signal(signal.SIGTERM)
        process.wait(_SECONDS_TO_STOP)
    except BaseException:  # a second Ctrl-C, or too long a time
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise


def _error_in(tail: str) -> str:
    said = [line.removeprefix("veilray: ") for line in tail.splitlines() if line.startswith("veilray: ")]
    return said[-1][:500] if said else ""
