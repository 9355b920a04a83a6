"""For callers that do not watch what is going on."""

from __future__ import annotations


def ignore(progress: object) -> None:
    """Take notice of nothing; in place of a callback that was not given."""
