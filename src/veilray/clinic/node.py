"""The DICOM node as a whole: receiver, worker, couriers and the page of counters, from start to stop."""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from veilray.clinic.config import ServeConfig
from veilray.clinic.counters import Counters
from veilray.clinic.courier import Courier
from veilray.clinic.destinations import LOOPBACK, check_destination, unprotected
from veilray.clinic.health import Health
from veilray.clinic.journal import LOG_NAME, start_log, stop_log
from veilray.clinic.queue import Queue
from veilray.clinic.receiver import Receiver
from veilray.clinic.supervisor import Supervisor
from veilray.errors import UsageError

LOG = logging.getLogger(LOG_NAME)

_LOOK_SECONDS = 0.5
_FORGET_SECONDS = 3600.0


def serve(config: ServeConfig, *, until: Callable[[], bool] = lambda: False) -> None:
    """Run a node until KeyboardInterrupt, or `until` says so; then end what is under way and return.

    Raises UsageError where the configuration cannot be used or another node has the state folder, DataError where the
    queue is damaged, RefusedError where others can read a private file.
    """
    for destination in config.destinations:
        check_destination(destination)
    with ExitStack() as stack:
        stack.enter_context(_alone(config.node.state))
        queue = Queue(config.node.state)
        stack.callback(queue.close)
        orphans = queue.recover([destination.name for destination in config.destinations])
        start_log(config.log)
        stack.callback(stop_log)
        if orphans:
            LOG.warning("%d files that the queue does not know were moved to orphans/ in the state folder", orphans)
        for host, port in ((config.node.host, config.node.port), (config.http.host, config.http.port)):
            _check_free(host, port)  # before the model is loaded, which takes a while
        counters = Counters()
        worker = Supervisor(config, queue, counters)
        stack.callback(worker.stop)
        worker.start()
        couriers = [Courier(destination, config, queue, counters) for destination in config.destinations]
        silence = config.model.silence_seconds
        health = Health(config.http, queue=queue, counters=counters, couriers=couriers, silence=silence)
        receiver = Receiver(config.node, queue, counters)
        parts: list[Courier | Health | Receiver] = [*couriers, health, receiver]
        for part in parts:
            stack.callback(part.stop)
            part.start()
        LOG.info("health on %s port %d", config.http.host, health.port)
        LOG.info("%s listening on %s port %d", config.node.ae_title, config.node.host, receiver.port)
        _warn(config)
        _run(config, queue, worker, until)
        LOG.info("stopping")


def _check_free(host: str, port: int) -> None:
    """UsageError where a port is taken, or an address is none of this machine's."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:  # socket.gaierror is one
        raise UsageError(f"cannot listen on {host}, port {port}: {(error.strerror or 'error').lower()}") from None


def _warn(config: ServeConfig) -> None:
    listens = ": whoever can listen to the network can read them"
    if config.node.tls is None and config.node.host not in LOOPBACK:
        LOG.warning("images come without TLS%s", listens)
    for said in filter(None, map(unprotected, config.destinations)):
        LOG.warning("%s%s", said, listens)


def _run(config: ServeConfig, queue: Queue, worker: Supervisor, until: Callable[[], bool]) -> None:
    forgotten = time.monotonic()
    with suppress(KeyboardInterrupt):
        while not until():
            worker.look_after()
            if time.monotonic() - forgotten > _FORGET_SECONDS:
                queue.forget(config.node.retention_days)
                forgotten = time.monotonic()
            time.sleep(_LOOK_SECONDS)


@contextmanager
def _alone(state: Path) -> Iterator[None]:
    """Hold the state folder's lock; UsageError where another node does. The system lets go of it in any death."""
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle = os.open(state / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"another node runs on {state}: give this one a state folder of its own") from None
        yield
    finally:
        os.close(handle)
