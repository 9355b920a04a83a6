"""How a rank takes a signal that tells it to end: whatever the moment, the user is told once, and why.

torchrun looks for ranks that have ended ten times a second, and tells the others to end by SIGTERM. On a busy machine
that comes before a rank has told the error by which it learned of the end itself.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from veilray.errors import LostRankError, VeilrayError

SIGNALS = (signal.SIGINT, signal.SIGTERM)
TOLD_TO_END = "another rank has ended or does not answer, or the job was stopped"
"""What SIGTERM from a launcher means to a rank."""


def interrupt_once() -> None:
    """Let the first SIGINT or SIGTERM raise KeyboardInterrupt, with the signal as its argument, and pass over others.

    A launcher sends its own after the terminal's.
    """
    for number in SIGNALS:
        signal.signal(number, _interrupt)


def pass_over_signals() -> None:
    """Let signals interrupt nothing from here on; outside the main thread, where none arrives, it does nothing.

    They are not ignored as the system does it: the watchdog must still learn of them.
    """
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            signal.signal(number, _pass_over)


@contextlib.contextmanager
def uninterrupted_end() -> Iterator[None]:
    """An error that leaves the block is not replaced any more by a signal that comes before it is told."""
    try:
        yield
    except BaseException:
        pass_over_signals()
        raise


def explained(interruption: KeyboardInterrupt) -> VeilrayError:
    """What the user is told where a rank was interrupted by a signal, of those that `interrupt_once` knows."""
    if signal.SIGTERM not in interruption.args:
        return VeilrayError("stopped")
    return LostRankError(
        f"{TOLD_TO_END}: this rank was told to end (SIGTERM); "
        "the other's own message says why, where it left one; run the command again (a training with --resume)"
    )


def _interrupt(number: int, frame: FrameType | None) -> None:
    pass_over_signals()
    raise KeyboardInterrupt(signal.Signals(number))


def _pass_over(number: int, frame: FrameType | None) -> None:
    pass
