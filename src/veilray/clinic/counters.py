"""What the node counts since it started, by name and labels, for the page of counters."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping

HELP: Mapping[str, str] = {
    "received": "Images taken into the queue.",
    "repeated": "Images that came again and were acknowledged without being denoised again.",
    "ignored": "Objects that Veilray derived itself, acknowledged and dropped.",
    "refused": "Associations, connections and objects that were refused, by reason.",
    "delivered": "Derived objects that a destination took.",
    "failed": "Tries to deliver that failed, by destination.",
    "worker_restarts": "How often the worker had to be started again.",
}
"""Counters and what they count."""


class Counters:
    """Numbers that only grow; safe between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: Counter[tuple[str, str]] = Counter()

    def add(self, name: str, label: str = "") -> None:
        """One more of `name`, which HELP must list."""
        assert name in HELP
        with self._lock:
            self._values[name, label] += 1

    def values(self) -> dict[tuple[str, str], int]:
        """All counts, by name and label."""
        with self._lock:
            return dict(self._values)
