"""Logs of the exchange: a line of JSON for each event, readable by their owner only."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path


def add_line(path: Path, event: str, **facts: str | int | list[str]) -> None:
    """Add a line to the log `path`, in one write. Facts must name no file and nothing of a patient."""
    line = json.dumps({"time": datetime.now(UTC).isoformat(timespec="seconds"), "event": event, **facts}) + "\n"
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        os.write(handle, line.encode())
    finally:
        os.close(handle)
