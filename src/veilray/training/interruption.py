"""Ctrl-C that waits for the end of a step, so that what is saved is whole."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class Interruption:
    """Whether somebody has asked the process to stop."""

    requested = False


@contextlib.contextmanager
def deferred_interruption(*, patient: bool = False) -> Iterator[Interruption]:
    """Inside the block the first SIGINT or SIGTERM sets `requested`; a second one interrupts at once.

    `patient` passes over the second, and over any after the block where there was a first: a launcher sends its own
    after the terminal's, and kills after a while.

    Outside the main thread, where Python allows no handlers, it does nothing.
    """
    interruption = Interruption()

    def handle(number: int, frame: FrameType | None) -> None:
        if interruption.requested and not patient:
            raise KeyboardInterrupt
        interruption.requested = True

    if threading.current_thread() is not threading.main_thread():
        yield interruption
        return
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interruption
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_IGN if patient and interruption.requested else handler)
