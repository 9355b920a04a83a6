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
    made_before: bool = False
    """Whether the file that would have been written is there already."""
    warnings: tuple[str, ...] = ()
    """What makes the result doubtful."""
