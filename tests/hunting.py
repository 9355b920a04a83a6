"""A hunt for tests that hang on luck: another order of files, and processes that stand still now and then.

    make hunt SEED=1

A plugin for pytest, of which `make test` knows nothing. Every second or so one of the processes under the tests is
stopped for up to 1.5 seconds, as a busy machine does: a worker of pytest, a rank, a server, a child of one.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
from pathlib import Path

import pytest

SEED = int(os.environ.get("HUNT_SEED", "0"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Shuffle the files, not the tests within one: those may share what is costly to make."""
    files = sorted({item.path for item in items})
    random.Random(SEED).shuffle(files)
    rank = {path: number for number, path in enumerate(files)}
    items.sort(key=lambda item: rank[item.path])


def pytest_sessionstart(session: pytest.Session) -> None:
    """Begin to stop processes, in the process that hands out the tests."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        # Not as a daemon, which would end in the middle and leave a process stopped.
        threading.Thread(target=_stop_processes, args=(threading.main_thread(),)).start()


def _stop_processes(session: threading.Thread) -> None:
    chance, pause = random.Random(SEED), threading.Event()
    while session.is_alive():
        pause.wait(chance.uniform(0.2, 1.0))
        running = [pid for pid in _descendants(os.getpid()) if _state(pid) not in "TZ"]
        if running:
            pid = chance.choice(running)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
                pause.wait(chance.uniform(0.3, 1.5))
                os.kill(pid, signal.SIGCONT)


def _descendants(pid: int) -> list[int]:
    children = []
    with contextlib.suppress(OSError):
        for tasks in Path(f"/proc/{pid}/task").iterdir():
            children += [int(child) for child in (tasks / "children").read_text().split()]
    return children + [one for child in children for one in _descendants(child)]


def _state(pid: int) -> str:
    """The letter of proc(5): T is one that a test itself has stopped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"
