"""The node's log: lines without patient data. Images appear by the first 12 digits of a keyed hash of their UID."""

from __future__ import annotations

import logging
import sys
from logging.handlers import TimedRotatingFileHandler
from typing import TYPE_CHECKING

from veilray.clinic.config import LogConfig

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

LOG_NAME = "veilray.node"
_LINE = "%(asctime)s %(levelname)s %(message)s"


class PipeHandler(logging.Handler):
    """Sends (level, line) through a pipe to a process that writes the log: two cannot rotate one file.

    A pipe of its own for each worker: a queue that several share stays locked when one of them is killed.
    """

    def __init__(self, pipe: Connection) -> None:
        super().__init__()
        self._pipe = pipe

    def emit(self, record: logging.LogRecord) -> None:
        """Send one line; where nobody reads any more, the process is about to end anyway."""
        try:
            self._pipe.send((record.levelno, record.getMessage()))
        except OSError:
            self.close()


def start_log(config: LogConfig) -> None:
    """Send the log to standard error and the file that is named, rotated at midnight and kept as long as configured."""
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    if config.file is not None:
        config.file.parent.mkdir(parents=True, exist_ok=True)
        handlers.append(
            TimedRotatingFileHandler(config.file, when="midnight", backupCount=config.keep_days, encoding="utf-8")
        )
    for handler in handlers:
        handler.setFormatter(logging.Formatter(_LINE))
    _send_to(handlers)


def log_into(pipe: Connection) -> None:
    """Send the log of this process through `pipe`."""
    _send_to([PipeHandler(pipe)])


def stop_log() -> None:
    """Close what `start_log` opened; from then on the node's lines go where the process's own do."""
    _send_to([])


def _send_to(handlers: list[logging.Handler]) -> None:
    log = logging.getLogger(LOG_NAME)
    log.setLevel(logging.INFO)
    log.propagate = not handlers
    for old in list(log.handlers):
        log.removeHandler(old)
        old.close()
    for handler in handlers:
        log.addHandler(handler)
    # These write what a peer sent, UIDs among it, and warnings do. To silence those where they arise is not enough: a
    # thread that leaves `catch_warnings` takes the filters of all others with it.
    logging.captureWarnings(bool(handlers))
    for name in ("pynetdicom", "pydicom", "httpx", "httpcore", "py.warnings"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
