"""Ctrl-C that waits for the end of a step, so that what is saved is whole."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from veilray.parallel.ending import SIGNALS, pass_over_signals


class Interruption:
    """Whether somebody has asked the process to stop."""

    requested = False

    def follow(self) -> None:
        """Stop as if it had been asked here, where another rank was."""
        self.requested = True


@contextlib.contextmanager
def deferred_interruption(*, patient: bool = False) -> Iterator[Interruption]:
    """Inside the block the first SIGINT or SIGTERM sets `requested`; a second one interrupts at once.

    `patient`, for ranks, passes over the second, and over any after the block where there was a first or the block ends
    in an error: a launcher sends its own, after the terminal's or because another rank has ended, and kills later on.

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
    before = {number: signal.signal(number, handle) for number in SIGNALS}
    failed = True
    try:
        yield interruption
        failed = False
    finally:
        if patient and (failed or interruption.requested):
            pass_over_signals()
        else:
            for number, handler in before.items():
                signal.signal(number, handler)
