"""SQLite as the node uses it: every change is on the disk when its block ends, and no reader waits for a writer."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from veilray.errors import DataError, VeilrayError

VERSION = 1

_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS images (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, sha256 TEXT NOT NULL, received REAL NOT NULL,
    state TEXT NOT NULL DEFAULT 'waiting', attempts INTEGER NOT NULL DEFAULT 0, reason TEXT NOT NULL DEFAULT '',
    ended REAL);
CREATE INDEX IF NOT EXISTS images_by_state ON images (state, id);
CREATE TABLE IF NOT EXISTS deliveries (
    image INTEGER NOT NULL REFERENCES images (id) ON DELETE CASCADE, destination TEXT NOT NULL,
    state TEXT NOT NULL DEFAULT 'due', tries INTEGER NOT NULL DEFAULT 0, due REAL NOT NULL DEFAULT 0,
    reason TEXT NOT NULL DEFAULT '', PRIMARY KEY (image, destination));
CREATE INDEX IF NOT EXISTS deliveries_by_due ON deliveries (destination, state, due);
CREATE TABLE IF NOT EXISTS heartbeat (one INTEGER PRIMARY KEY CHECK (one = 1), at REAL NOT NULL);
PRAGMA user_version = {VERSION};
"""


class Database:
    """One file, safe between threads; several processes may each have it open.

    It is written and read by a connection each: one that waits until another process has written must not keep a
    reader of this one waiting, who may be about to find out that the other process hangs.

    Raises DataError where the file is damaged or of another version.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._write_lock, self._read_lock = threading.RLock(), threading.Lock()
        try:
            self._writer = _connect(path)
            version = self._writer.execute("PRAGMA user_version").fetchone()[0]
            if version not in (0, VERSION):
                raise DataError(f"{path} was written by another version of Veilray")
            # FULL: a commit is on the disk when it returns, also in WAL mode.
            for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
                self._writer.execute(f"PRAGMA {pragma}")
            self._writer.executescript(_SCHEMA)
            self._reader = _connect(path)
            self._reader.execute("PRAGMA query_only = ON")
        except sqlite3.DatabaseError as error:
            raise DataError(f"{path} is damaged ({error}); move its folder away and start anew") from None

    def close(self) -> None:
        """Close both connections."""
        with self._write_lock, self._read_lock:
            self._reader.close()
            self._writer.close()

    def rows(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """What a SELECT gives, of what has been written for good: nothing of a transaction that is open."""
        with self._read_lock:
            return self._reader.execute(statement, values).fetchall()

    @contextlib.contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction: on the disk when the block ends, undone when it fails; VeilrayError where it cannot be."""
        with self._write_lock:
            try:
                self._writer.execute("BEGIN IMMEDIATE")
                yield self._writer
                self._writer.execute("COMMIT")
            except sqlite3.OperationalError as error:
                self._roll_back()
                raise VeilrayError(f"{self._path} cannot be written: {error}") from None
            except BaseException:
                self._roll_back()
                raise

    def _roll_back(self) -> None:
        if self._writer.in_transaction:
            self._writer.execute("ROLLBACK")


def _connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, timeout=30.0, isolation_level=None, check_same_thread=False)
