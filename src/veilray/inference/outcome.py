"""What became of a file that was to be denoised."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Denoised:
    """What became of one input."""

    source: str
    target: Path | None
    """The file that was written; None where there is none."""
    reason: str = ""
    """Why there is none."""
    warnings: tuple[str, ...] = ()
    """What makes the result doubtful."""
