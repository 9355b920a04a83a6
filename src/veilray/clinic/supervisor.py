"""Keeps one worker process alive, writes down what it says, and gives back what a dead one had."""

from __future__ import annotations

import logging
import multiprocessing
import threading
import time
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from veilray.clinic.config import ServeConfig
from veilray.clinic.counters import Counters
from veilray.clinic.journal import LOG_NAME
from veilray.clinic.queue import Queue
from veilray.clinic.worker import run_worker
from veilray.errors import UsageError

LOG = logging.getLogger(LOG_NAME)

LOAD_SECONDS = 300.0
"""How long a worker may take to load its model."""
_LONGEST_PAUSE = 60.0


class Supervisor:
    """One worker, started again where it dies, after a pause that doubles with every death in a row.

    One that hangs, in a decoder or a driver, is ended when it has been silent for too long.
    """

    def __init__(self, config: ServeConfig, queue: Queue, counters: Counters) -> None:
        self._config, self._queue, self._counters = config, queue, counters
        self._context = multiprocessing.get_context("spawn")  # a fork would copy threads' locks
        self._process: BaseProcess | None = None
        self._loaded = threading.Event()
        self._reason = ""
        self._deaths = 0
        self._again = 0.0
        self._beaten: float | None = None
        self._heard = 0.0

    def start(self) -> None:
        """Start the first worker and wait until it has its model; UsageError with its reason where it cannot."""
        self._begin()
        if not self._loaded.wait(LOAD_SECONDS):
            self._reason = f"it did not load its model in {LOAD_SECONDS:.0f} s"
        if self._reason:
            raise UsageError(f"the worker could not start: {self._reason}")

    def look_after(self) -> None:
        """End the worker where it hangs; start it again where it ended and its pause is over."""
        if self._process is None:
            return
        if self._process.is_alive():
            self._end_if_silent(self._process)
            return
        if not self._again:
            LOG.error("the worker ended with status %s %s", self._process.exitcode, self._reason)
            self._counters.add("worker_restarts")
            self._queue.give_back()
            self._deaths = self._deaths + 1 if not self._loaded.is_set() or self._reason else 1
            self._again = time.monotonic() + min(_LONGEST_PAUSE, 0.25 * 2.0 ** min(self._deaths, 10))
        elif time.monotonic() >= self._again:
            self._again = 0.0
            self._begin()

    def stop(self) -> None:
        """Ask the worker to end after its batch; end it where it takes too long."""
        if self._process is None:
            return
        self._process.terminate()
        self._process.join(timeout=30)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _end_if_silent(self, process: BaseProcess) -> None:
        # Asked before the heartbeat is looked at: a worker's first one comes before it says that it has loaded.
        patience = self._config.model.silence_seconds if self._loaded.is_set() else LOAD_SECONDS
        # By this process's own clock: the other may be set while a worker is at work.
        beaten, now = self._queue.beaten(), time.monotonic()
        if beaten != self._beaten:
            self._beaten, self._heard = beaten, now
        if now - self._heard > patience:
            LOG.error("the worker has been silent for %.0f s and is ended", now - self._heard)
            process.kill()  # a process that was stopped, or hangs in a driver, hears no SIGTERM
            process.join(timeout=10)

    def _begin(self) -> None:
        self._loaded.clear()
        self._beaten, self._heard = self._queue.beaten(), time.monotonic()
        self._reason = ""
        ours, theirs = self._context.Pipe(duplex=False)
        self._process = self._context.Process(
            target=run_worker, args=(self._config, theirs), name="veilray worker", daemon=True
        )
        self._process.start()
        theirs.close()
        threading.Thread(target=self._listen, args=(ours,), name="listener", daemon=True).start()

    def _listen(self, pipe: Connection) -> None:
        """Write down the worker's lines until its end; its first word says whether it has its model."""
        with pipe:
            try:
                self._reason = pipe.recv()
                self._loaded.set()
                while True:
                    level, line = pipe.recv()
                    LOG.log(level, "%s", line)
            except (EOFError, OSError):
                if not self._loaded.is_set():
                    self._reason = "it ended before it had its model"
                    self._loaded.set()
