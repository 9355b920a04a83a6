"""Ends a rank that no longer gets on, so that a launcher can start all of them again.

A rank that waits in an exchange for a peer that hangs runs no Python, and so no signal handler. The exchange itself
gives up after its timeout, and says so; where that does not happen, or where it is this rank that hangs, in a file
system or in a driver, a thread ends the process. So it does where torchrun tells this rank to end, for another that has
ended, and the exchange goes on waiting: torchrun would kill it before its timeout, and leave the user without a word.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from types import TracebackType

from veilray.parallel.ending import SIGNALS, TOLD_TO_END
from veilray.parallel.group import Group
from veilray.parallel.rendezvous import LEAVING_SECONDS

EXIT_STATUS = 1
GRACE = 10.0
"""Seconds by which a rank outlives the timeout of its exchanges: an exchange that gives up knows more to say."""
TOLD_SECONDS = 20.0
"""Seconds within which a rank that torchrun has told to end must get on: after 30 torchrun kills it."""
_STORE_SECONDS = 2.0


class Watchdog:
    """A context that ends the process after `timeout` seconds without a `beat`, from `watch` until it is left.

    After `told_timeout` seconds where torchrun has told the process to end. Nothing is watched in a process that is
    alone: nobody waits for it, and nobody would start it again.
    """

    def __init__(self, *, timeout: float, told_timeout: float = TOLD_SECONDS) -> None:
        self._timeout, self._told_timeout = timeout, told_timeout
        self._left = threading.Event()
        self._beaten = time.monotonic()
        self._told: float | None = None
        self._signals: _Signals | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Watchdog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._left.set()
        if self._thread is not None and self._signals is not None:
            self._signals.wake()
            # A thread that is still there when the interpreter ends may take the process down with it.
            self._thread.join()
            self._signals.close()

    def watch(self, group: Group) -> None:
        """Begin to watch this process as a rank of a group."""
        self.beat()
        if group.joined:
            self._signals = _Signals()
            self._thread = threading.Thread(
                target=self._watch, args=[group, self._signals], name="watchdog", daemon=True
            )
            self._thread.start()

    def beat(self) -> None:
        """The process gets on."""
        self._beaten = time.monotonic()

    def _watch(self, group: Group, signals: _Signals) -> None:
        while not self._left.is_set():
            if signals.arrived(within=max(0.01, self._remaining())) and self._told is None:
                self._told = time.monotonic()
            if self._remaining() <= 0 and not self._left.is_set():
                _end(group, self._why(group.rank))

    def _remaining(self) -> float:
        end = self._beaten + self._timeout
        if self._told is not None:
            end = min(end, max(self._beaten, self._told) + self._told_timeout)
        return end - time.monotonic()

    def _why(self, rank: int) -> str:
        if self._told is None:
            return (
                f"rank {rank} has not got on for {self._timeout:.0f} s and is ended: it, another rank or a file system "
                "hangs; --resume goes on from the last checkpoint"
            )
        return (
            f"{TOLD_TO_END}: rank {rank} was told to end, and has not got on for {self._told_timeout:.0f} s; --resume "
            "goes on from the last checkpoint"
        )


class _Signals:
    """Hears of SIGINT and SIGTERM in any thread, also while no Python, and so no handler, runs in the main one."""

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        # Others than torchrun may give a process more time to end.
        self._heard = "TORCHELASTIC_RUN_ID" in os.environ and threading.current_thread() is threading.main_thread()
        self._before = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False) if self._heard else -1

    def arrived(self, *, within: float) -> bool:
        """Wait for so many seconds, or until `wake`; whether a signal to end has come."""
        self._reader.settimeout(within)
        try:
            return not set(SIGNALS).isdisjoint(self._reader.recv(64))
        except TimeoutError:
            return False

    def wake(self) -> None:
        """Let whoever waits go on."""
        self._writer.send(b"\0")

    def close(self) -> None:
        """Hear nothing more."""
        if self._heard:
            signal.set_wakeup_fd(self._before)
        self._reader.close()
        self._writer.close()


def _end(group: Group, why: str) -> None:
    """End the process without waiting for what hangs; say why, unless another rank has said so."""
    with contextlib.suppress(OSError):  # where it is closed, nobody listens
        heard = os.dup(2)  # the store, which may hang, is asked with standard error turned away
        if _is_first(group):
            os.write(heard, f"veilray: {why}\n".encode())
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
