"""The node's durable queue: image files in a folder, and what becomes of each in SQLite.

    STATE/                  0700
      queue.sqlite          one row an image, one an image and destination
      uid.key               32 bytes: the key of derived UIDs and of the hashes below
      received/NAME.dcm     as received; until the derived object is delivered
      derived/NAME.dcm      what goes on
      orphans/              files of the two that the database does not know, set aside at a start
      lock                  held by the running node

NAME is a keyed hash of the SOP Instance UID, so neither file names nor the database name a patient. A row comes after
its file is on the disk and before the sender hears of success, and a file goes after the row that says it may: a kill
between leaves at worst a file that nobody was promised anything about, or one that is done with.

An image is `waiting`, `denoising` (a worker has it), `ready` (derived, to be delivered), `done`, `kept` (not denoised,
with the reason; the file stays) or `dead` (a worker died of it time and again; the file stays). What is kept or dead
stays so until an operator retries or discards it; where its file was deleted, the image is as unknown as a new one.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import secrets
import sqlite3
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from veilray.clinic.database import Database
from veilray.clinic.given_up import GivenUp
from veilray.errors import DataError
from veilray.files import replacing, sync

WORKER_TRIES = 3
"""How often a worker may die of an image before it is given up."""
NODE_TRIES = 10
"""How often the whole node may end while a worker has an image: more, since that is seldom the image's doing."""

_GIVEN_UP = ("kept", "dead")
ImageState = Literal["waiting", "denoising", "ready", "done", "kept", "dead"]
Accepted = Literal["new", "known", "other"]


@dataclass(frozen=True, kw_only=True)
class QueuedImage:
    """One image in the queue."""

    id: int
    name: str
    attempts: int
    received: datetime


class Queue:
    """The queue of one state folder. Safe between threads and processes; every change is on the disk when it returns.

    Raises DataError where the folder's database is damaged or of another version, or missing while there are images.
    """

    def __init__(self, state: Path) -> None:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._state = state
        for folder in (self.received, self.derived):
            folder.mkdir(mode=0o700, exist_ok=True)
        path = state / "queue.sqlite"
        if not (path.exists() and path.stat().st_size) and any(self._images()):
            raise DataError(f"{path} is missing while {state} holds images: restore it, or move the folder away")
        self.key = _load_key(state / "uid.key")
        self._database = Database(path)
        self.given_up = GivenUp(self._database, self.received, self._finish)
        """What ended without success, for an operator."""

    @property
    def received(self) -> Path:
        """Folder of images as they came."""
        return self._state / "received"

    @property
    def derived(self) -> Path:
        """Folder of derived objects."""
        return self._state / "derived"

    def _images(self) -> Iterator[Path]:
        return (path for folder in (self.received, self.derived) for path in folder.glob("[!.]*.dcm"))

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    def name_of(self, uid: str) -> str:
        """The name by which the node knows an image: 32 hex digits of a keyed hash of its SOP Instance UID."""
        return hmac.digest(self.key, b"veilray node image\0" + uid.encode(), hashlib.sha256)[:16].hex()

    def accept(self, uid: str, data: bytes) -> Accepted:
        """Take an image, durably: `new`, `known` where the same bytes came before, `other` where others did.

        When it returns `new` or `known` the sender may be told of success.
        """
        name, digest = self.name_of(uid), hashlib.sha256(data).hexdigest()
        if (known := self._known(name, digest)) is not None:
            return known
        path = self.received / f".{name}.{secrets.token_hex(8)}.part"
        try:
            path.touch(mode=0o600)
            path.write_bytes(data)
            sync(path)
            with self._database.writing() as database:
                if (known := self._known(name, digest)) is not None:
                    return known
                database.execute("DELETE FROM images WHERE name = ?", (name,))  # one whose file is gone
                path.replace(self.received / f"{name}.dcm")
                sync(self.received)
                row = (name, digest, time.time())
                database.execute("INSERT INTO images (name, sha256, received) VALUES (?, ?, ?)", row)
        finally:
            path.unlink(missing_ok=True)
        return "new"

    def _known(self, name: str, digest: str) -> Accepted | None:
        for kept, state in self._database.rows("SELECT sha256, state FROM images WHERE name = ?", (name,)):
            if state not in _GIVEN_UP or (self.received / f"{name}.dcm").exists():
                return "known" if kept == digest else "other"
        return None

    def recover(self, destinations: Sequence[str]) -> int:
        """After a stop of whatever kind: give back what a worker had, drop files that are done with or half written.

        Deliveries to destinations that are configured no longer become dead letters. Images that the database does not
        know go to `orphans/`; gives how many.
        """
        self.give_back(NODE_TRIES)
        with self._database.writing() as database:
            marks = ", ".join("?" * len(destinations))
            database.execute(
                f"UPDATE deliveries SET state = 'dead', reason = 'the destination is configured no longer' "
                f"WHERE state = 'due' AND destination NOT IN ({marks})",
                tuple(destinations),
            )
            rows = database.execute("SELECT name, state FROM images").fetchall()
        states = {f"{name}.dcm": state for name, state in rows}
        orphans = [path for path in self._images() if path.name not in states]
        for path in orphans:
            aside = self._state / "orphans"
            aside.mkdir(mode=0o700, exist_ok=True)
            path.replace(aside / f"{path.parent.name}-{path.name}")
        for folder in (self.received, self.derived):
            for path in folder.iterdir():
                if states.get(path.name, "done") == "done":
                    path.unlink()
        self._finish()
        return len(orphans)

    def give_back(self, tries: int = WORKER_TRIES) -> None:
        """Give back what a dead worker had; an image that it had `tries` times before is dead."""
        with self._database.writing() as database:
            database.execute(
                "UPDATE images SET state = 'dead', reason = ?, ended = ? WHERE state = 'denoising' AND attempts >= ?",
                (f"the worker ended {tries} times while it had this image", time.time(), tries),
            )
            database.execute("UPDATE images SET state = 'waiting' WHERE state = 'denoising'")

    def claim(self, count: int, *, again: bool = False) -> list[QueuedImage]:
        """The next images for a worker: those that none had before, or with `again` one of the others.

        One that a worker had before may be what killed it: nothing else should be under way with it.
        """
        with self._database.writing() as database:
            rows = database.execute(
                "SELECT id, name, attempts, received FROM images WHERE state = 'waiting' AND (attempts > 0) = ? "
                "ORDER BY attempts, id LIMIT ?",
                (again, 1 if again else count),
            ).fetchall()
            database.executemany(
                "UPDATE images SET state = 'denoising', attempts = attempts + 1 WHERE id = ?",
                [(row[0],) for row in rows],
            )
        return [
            QueuedImage(id=row[0], name=row[1], attempts=row[2], received=datetime.fromtimestamp(row[3], UTC))
            for row in rows
        ]

    def ready(self, image: QueuedImage, data: bytes, destinations: Sequence[str]) -> None:
        """An image's derived object, for every destination."""
        with replacing(self.derived / f"{image.name}.dcm", mode=0o600) as part:
            part.write_bytes(data)
        with self._database.writing() as database:
            database.execute("UPDATE images SET state = 'ready' WHERE id = ?", (image.id,))
            database.executemany(
                "INSERT OR IGNORE INTO deliveries (image, destination) VALUES (?, ?)",
                [(image.id, destination) for destination in destinations],
            )

    def put_back(self, images: Sequence[QueuedImage]) -> None:
        """Give back images that a worker had no time for: this was no attempt."""
        with self._database.writing() as database:
            database.executemany(
                "UPDATE images SET state = 'waiting', attempts = ? WHERE id = ? AND state = 'denoising'",
                [(image.attempts, image.id) for image in images],
            )

    def keep(self, image: QueuedImage, reason: str) -> None:
        """Keep an image as it came, not denoised, with the reason."""
        with self._database.writing() as database:
            database.execute(
                "UPDATE images SET state = 'kept', reason = ?, ended = ? WHERE id = ?", (reason, time.time(), image.id)
            )

    def due(self, destination: str, count: int) -> list[QueuedImage]:
        """Derived objects that should go to a destination now, oldest first."""
        rows = self._database.rows(
            "SELECT images.id, name, tries, received FROM deliveries JOIN images ON images.id = image "
            "WHERE destination = ? AND deliveries.state = 'due' AND due <= ? AND images.state = 'ready' "
            "ORDER BY images.id LIMIT ?",
            (destination, time.time(), count),
        )
        return [
            QueuedImage(id=row[0], name=row[1], attempts=row[2], received=datetime.fromtimestamp(row[3], UTC))
            for row in rows
        ]

    def delivered(self, image: QueuedImage, destination: str) -> None:
        """A destination has an image for good."""
        with self._database.writing() as database:
            database.execute(
                "UPDATE deliveries SET state = 'done', reason = '' WHERE image = ? AND destination = ?",
                (image.id, destination),
            )
            finished = _finished(database, image.id)
        self._let_go(finished)

    def refused(self, image: QueuedImage, destination: str, reason: str, *, wait: float, tries: int) -> bool:
        """A destination did not take an image: try again after `wait` seconds, at most `tries` times in all.

        Gives whether it is a dead letter now.
        """
        dead = image.attempts + 1 >= tries
        with self._database.writing() as database:
            database.execute(
                "UPDATE deliveries SET state = ?, tries = tries + 1, due = ?, reason = ? "
                "WHERE image = ? AND destination = ?",
                ("dead" if dead else "due", time.time() + wait, reason, image.id, destination),
            )
        return dead

    def _finish(self) -> None:
        """Let go of images that every destination has."""
        with self._database.writing() as database:
            finished = _finished(database)
        self._let_go(finished)

    def _let_go(self, names: Sequence[str]) -> None:
        """Delete the files of images whose rows say that they are done."""
        for name in names:
            (self.derived / f"{name}.dcm").unlink(missing_ok=True)
            (self.received / f"{name}.dcm").unlink(missing_ok=True)

    def forget(self, days: float) -> None:
        """Forget the hashes of images that were delivered longer ago than that."""
        with self._database.writing() as database:
            database.execute("DELETE FROM images WHERE state = 'done' AND ended < ?", (time.time() - 86_400.0 * days,))

    def forget_delivered(self, name: str = "") -> int:
        """Forget images that were delivered and whose names begin so: sent again, they are new. Gives how many."""
        with self._database.writing() as database:
            return database.execute(
                "DELETE FROM images WHERE state = 'done' AND substr(name, 1, ?) = ?", (len(name), name)
            ).rowcount

    def counts(self) -> dict[str, int]:
        """How many images are in each state."""
        rows = self._database.rows("SELECT state, COUNT(*) FROM images GROUP BY state")
        found = dict(rows)
        return {state: found.get(state, 0) for state in ("waiting", "denoising", "ready", "done", "kept", "dead")}

    def deliveries(self) -> dict[tuple[str, str], int]:
        """How many deliveries are in each state, by destination and state."""
        rows = self._database.rows("SELECT destination, state, COUNT(*) FROM deliveries GROUP BY destination, state")
        return {(destination, state): count for destination, state, count in rows}

    def held(self) -> dict[str, int]:
        """Bytes of the files in each folder; what is kept, dead or an orphan lies there until somebody deletes it."""
        sizes = {}
        for name in ("received", "derived", "orphans"):
            sizes[name] = 0
            for path in (self._state / name).glob("*.dcm"):
                with contextlib.suppress(FileNotFoundError):  # it may be delivered meanwhile
                    sizes[name] += path.stat().st_size
        return sizes

    def backlog(self) -> tuple[int, float]:
        """Images that are neither delivered nor given up, and the age of the oldest in seconds."""
        ((count, oldest),) = self._database.rows(
            "SELECT COUNT(*), MIN(received) FROM images WHERE state IN ('waiting', 'denoising') OR state = 'ready' "
            "AND EXISTS (SELECT 1 FROM deliveries WHERE image = images.id AND state = 'due')"
        )
        return count, max(0.0, time.time() - oldest) if oldest is not None else 0.0

    def beat(self) -> None:
        """A worker lives."""
        with self._database.writing() as database:
            database.execute("INSERT OR REPLACE INTO heartbeat VALUES (1, ?)", (time.time(),))

    def beaten(self) -> float | None:
        """When a worker last said that it lives, in seconds of the clock; None where none ever did."""
        for (at,) in self._database.rows("SELECT at FROM heartbeat"):
            return float(at)
        return None

    def silence(self) -> float | None:
        """Seconds since a worker last said that it lives; None where none ever did."""
        at = self.beaten()
        return None if at is None else max(0.0, time.time() - at)


def _finished(database: sqlite3.Connection, number: int | None = None) -> list[str]:
    """Note of images that every destination has, one or all, that they are done; gives their names."""
    rows = database.execute(
        "SELECT id, name FROM images WHERE state = 'ready' AND (? IS NULL OR id = ?) AND NOT EXISTS "
        "(SELECT 1 FROM deliveries WHERE image = images.id AND state <> 'done')",
        (number, number),
    ).fetchall()
    database.executemany(
        "UPDATE images SET state = 'done', ended = ? WHERE id = ?", [(time.time(), row[0]) for row in rows]
    )
    return [name for _, name in rows]


def _load_key(path: Path) -> bytes:
    """The node's key, made at its first start. Whoever loses it makes duplicates; it opens nothing."""
    if not path.exists():
        with replacing(path, mode=0o600) as part:
            part.write_bytes(secrets.token_bytes(32))
    key = path.read_bytes()
    if len(key) != 32:
        raise DataError(f"{path} is damaged; restore it from a backup")
    return key
