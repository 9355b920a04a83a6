"""What classical methods have computed already, image by image, so that a stopped evaluation goes on where it was."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from veilray.errors import DataError

Key = dict[str, Any]
"""Everything that decides a value, as JSON can hold it."""


class ScoreCache:
    """Values by key in a file of lines, each written whole; lines that cannot be read are as if they were not there.

    Keys are digested, so the file says what was computed but not of which image.
    """

    def __init__(self, path: Path | None) -> None:
        """`path` None keeps the values in memory alone. Raises DataError where it cannot be a file."""
        self._path = path
        self._values = _read(path) if path is not None else {}

    def get(self, key: Key) -> Any:
        """The value of a key; None where there is none."""
        return self._values.get(_digest(key))

    def put(self, key: Key, value: Any) -> None:
        """Keep a value, which JSON can hold; it is on the disk when this returns."""
        digest = _digest(key)
        self._values[digest] = value
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as stream:
                # A line that a kill cut short must not swallow this one.
                stream.write(("" if _ends_well(self._path) else "\n") + json.dumps([digest, value]) + "\n")


def _read(path: Path) -> dict[str, Any]:
    if path.exists() and not path.is_file():
        raise DataError(f"{path} is no file of scores; name another one")
    values: dict[str, Any] = {}
    for line in path.read_bytes().splitlines() if path.is_file() else []:
        try:
            digest, value = json.loads(line)
            values[str(digest)] = value
        except (ValueError, TypeError):
            continue
    return values


def _ends_well(path: Path) -> bool:
    if not path.is_file() or not path.stat().st_size:
        return True
    with path.open("rb") as stream:
        stream.seek(-1, 2)
        return stream.read(1) == b"\n"


def _digest(key: Key) -> str:
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
