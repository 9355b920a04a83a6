"""What is wrong with a configuration, and whether the file or the command line brought it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import ValidationError

_TOLD = 3
"""Faults that a message tells of."""


def faults(error: ValidationError) -> dict[str, str]:
    """What is wrong, by the key or section where it is."""
    found: dict[str, str] = {}
    for fault in error.errors():
        # A union such as a number or a range reports each of its branches; the first says enough.
        parts = [str(part) for part in fault["loc"]]
        where = ".".join(part for part in parts if "[" not in part and part != "constrained-float")
        what = "unknown key" if fault["type"] == "extra_forbidden" else fault["msg"].removeprefix("Value error, ")
        found.setdefault(where, what)
    return found


def explain(found: Mapping[str, str], of_file: Mapping[str, str], overrides: Sequence[str], *, path: Path) -> str:
    """The first faults, each after what brought it: `--set` options, or the file, whose own are `of_file`."""
    told: dict[str, list[str]] = {}
    for where, what in list(found.items())[:_TOLD]:
        given = [f"--set {override}" for override in overrides if _touches(override.partition("=")[0].strip(), where)]
        source = str(path) if of_file.get(where) == what else " ".join(given) or str(path)
        told.setdefault(source, []).append(f"{where}: {what}" if where else what)
    return "; ".join(f"{source}: {'; '.join(lines)}" for source, lines in told.items())


def _touches(key: str, where: str) -> bool:
    return key == where or key.startswith(f"{where}.") or where.startswith(f"{key}.")
