"""Ends a rank that no longer gets on, so that a launcher can start all of them again.

A rank that waits in an exchange for a peer that hangs runs no Python, and so no signal handler. The exchange itself
gives up after its timeout, and says so; where that does not happen, or where it is this rank that hangs, in a file
system or in a driver, a thread ends the process.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from types import TracebackType

from veilray.parallel.group import Group
from veilray.parallel.rendezvous import LEAVING_SECONDS

EXIT_STATUS = 1
GRACE = 10.0
"""Seconds by which a rank outlives the timeout of its exchanges: an exchange that gives up knows more to say."""
_STORE_SECONDS = 2.0


class Watchdog:
    """A context that ends the process after `timeout` seconds without a `beat`, from `watch` until it is left.

    Nothing is watched in a process that is alone: nobody waits for it, and nobody would start it again.
    """

    def __init__(self, *, timeout: float) -> None:
        self._timeout = timeout
        self._left = threading.Event()
        self._beaten = time.monotonic()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Watchdog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._left.set()
        if self._thread is not None:
            # A thread that is still there when the interpreter ends may take the process down with it.
            self._thread.join()

    def watch(self, group: Group) -> None:
        """Begin to watch this process as a rank of a group."""
        self.beat()
        if group.joined:
            self._thread = threading.Thread(target=self._watch, args=[group], name="watchdog", daemon=True)
            self._thread.start()

    def beat(self) -> None:
        """The process gets on."""
        self._beaten = time.monotonic()

    def _watch(self, group: Group) -> None:
        while not self._left.wait(max(0.01, self._remaining())):
            if self._remaining() <= 0:
                _end(group, self._timeout)

    def _remaining(self) -> float:
        return self._beaten + self._timeout - time.monotonic()


def _end(group: Group, timeout: float) -> None:
    """End the process without waiting for what hangs; say why, unless another rank has said so."""
    with contextlib.suppress(OSError):  # where it is closed, nobody listens
        heard = os.dup(2)  # the store, which may hang, is asked with standard error turned away
        if _is_first(group):
            message = (
                f"veilray: rank {group.rank} has not got on for {timeout:.0f} s and is ended: it, another rank or a "
                "file system hangs; --resume goes on from the last checkpoint\n"
            )
            os.write(heard, message.encode())
    # Other ranks hang for the same reason, and end a little later.
    _bounded(group.leave, _STORE_SECONDS)
    _bounded(lambda: group.outlive_others(LEAVING_SECONDS), LEAVING_SECONDS)
    os._exit(EXIT_STATUS)


def _is_first(group: Group) -> bool:
    """Whether no other rank has spoken; a store that does not answer is taken for a yes."""
    answers: list[bool] = []
    _bounded(lambda: answers.append(group.is_first("error")), _STORE_SECONDS)
    return all(answers)


def _bounded(act: Callable[[], None], seconds: float) -> None:
    """Do what may hang, and wait for it so long at most."""
    acting = threading.Thread(target=act, daemon=True)
    acting.start()
    acting.join(seconds)
