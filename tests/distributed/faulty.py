"""The command line of Veilray with faults in it: `python faulty.py train ...`, the faults in $FAULTS as JSON.

The first befalls the rank it names in its first life, the next one in the life after that, which the launcher gives it,
and so on; when there are none left the ranks are sound.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

INSIDE = 1.0
"""Seconds for which the sound rank stays away from an exchange in which the other is killed."""
DISK = 60_000
"""Bytes to which a file may grow on the full disk: fewer than a checkpoint has."""


def main() -> None:
    """Arm the fault of this life and run the command."""
    from veilray.cli.main import run

    faults, life = json.loads(os.environ["FAULTS"]), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    if life < len(faults):
        arm = {
            "killed": _killed,
            "killed inside an all-reduce": _killed_inside_all_reduce,
            "killed inside a checkpoint": _killed_inside_checkpoint,
            "hung": _hung,
            "full disk": _full_disk,
        }
        fault = faults[life]
        arm[fault["kind"]](fault["step"], int(os.environ["RANK"]) == fault["rank"], fault["moment"])
    run()


def _killed(step: int, mine: bool, moment: float) -> None:
    """By SIGKILL, anywhere in a step."""
    if mine:
        _before_step(step, lambda: threading.Timer(0.05 * moment, _die).start())


def _killed_inside_all_reduce(step: int, mine: bool, moment: float) -> None:
    """While it waits for the other rank."""
    if mine:
        _before_step(step, lambda: threading.Timer(INSIDE * (0.2 + 0.6 * moment), _die).start())
    else:
        _before_step(step, lambda: time.sleep(INSIDE))


def _killed_inside_checkpoint(step: int, mine: bool, moment: float) -> None:
    """With a part of the file written, or written but not renamed, or renamed but the oldest not yet removed."""
    from veilray import files
    from veilray.models import tensors

    if not mine:
        return

    def cut_short(content: Any, path: Path, header: Any) -> None:
        save(content, path, header)
        if _is_checkpoint(path, step):
            os.truncate(path, int(path.stat().st_size * moment / 0.5))
            _die()

    def unnamed(path: Path) -> None:
        sync(path)
        if _is_checkpoint(path, step):
            _die()

    def unpruned(path: Path) -> None:
        sync(path)
        if path.is_dir() and any(_is_checkpoint(file, step) for file in path.iterdir()):
            _die()

    save, sync = tensors.save_file, files.sync
    if moment < 0.5:
        tensors.save_file = cut_short  # type: ignore[assignment]
    else:
        files.sync = unnamed if moment < 0.75 else unpruned


def _hung(step: int, mine: bool, moment: float) -> None:
    """By SIGSTOP, as a process on a machine that no longer answers.

    The other ends it with itself, or torchrun would wait for it for 30 seconds more.
    """
    if mine:
        _before_step(step, lambda: os.kill(os.getpid(), signal.SIGSTOP))
    else:
        _before_step(step, lambda: atexit.register(_kill_stopped_sibling))  # later, to run before a rank's own end


def _kill_stopped_sibling() -> None:
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent = path.read_text().rpartition(")")[2].split()[:2]  # proc(5): pid (name) state ppid
            if state == "T" and int(parent) == os.getppid():
                os.kill(int(path.parent.name), signal.SIGKILL)


def _full_disk(step: int, mine: bool, moment: float) -> None:
    """A limit of the size of files stands for it: writing fails in the same way, with another errno."""
    if mine:
        sys.dont_write_bytecode = True  # it would be cut short, and kept
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        _before_step(step, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (DISK, hard)))


def _before_step(step: int, act: Callable[[], object]) -> None:
    """Act once, before a step, or before the first one of this life where the life before got further."""
    from veilray.training.step import Stepper

    take, waiting = Stepper.take, [act]

    def taken(self: Stepper, *arguments: Any, **options: Any) -> Any:
        if waiting and self._number >= step:
            waiting.pop()()
        return take(self, *arguments, **options)

    Stepper.take = taken  # type: ignore[method-assign]


def _is_checkpoint(path: Path, step: int) -> bool:
    """Whether this is the checkpoint of a step or of one after it, under its own name or aside."""
    number = path.name.lstrip(".").removeprefix("state-").partition(".")[0]
    return number.isdigit() and int(number) >= step


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


if __name__ == "__main__":
    main()
