"""The ledger's tables, and finding an acquisition in them again: by UID or name, by pixels, by likeness."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

import numpy as np

from veilray.exchange.keys.secret import Secret
from veilray.exchange.ledger.exposure import Given
from veilray.exchange.ledger.likeness import LIKENESS_BYTES, as_words, distances, is_near, mirrored
from veilray.exchange.ledger.records import Image

SCHEMA = """
CREATE TABLE owner (tag BLOB NOT NULL);
CREATE TABLE releases (
    id TEXT PRIMARY KEY, made TEXT NOT NULL, status TEXT NOT NULL, receivers TEXT NOT NULL, mode TEXT NOT NULL,
    source TEXT NOT NULL, noise_id TEXT NOT NULL, clip INTEGER NOT NULL, images INTEGER NOT NULL
);
CREATE TABLE acquisitions (id INTEGER PRIMARY KEY);
CREATE TABLE tags (
    tag BLOB NOT NULL, acquisition INTEGER NOT NULL REFERENCES acquisitions, PRIMARY KEY (tag, acquisition)
) WITHOUT ROWID;
CREATE TABLE looks (acquisition INTEGER NOT NULL REFERENCES acquisitions, look BLOB NOT NULL);
CREATE TABLE given (
    release TEXT NOT NULL REFERENCES releases, acquisition INTEGER NOT NULL REFERENCES acquisitions,
    field TEXT NOT NULL, geometry TEXT NOT NULL, std REAL NOT NULL
);
CREATE INDEX given_by_acquisition ON given (acquisition);
CREATE INDEX given_by_release ON given (release);
CREATE TABLE events (
    at TEXT NOT NULL, release TEXT NOT NULL, what TEXT NOT NULL, name TEXT NOT NULL, reason TEXT NOT NULL
);
"""

# Since version 2.
MODELS_SCHEMA = """
CREATE TABLE models (
    release TEXT PRIMARY KEY REFERENCES releases, weights TEXT NOT NULL, trained_on TEXT NOT NULL,
    patients INTEGER NOT NULL
);
"""

# Since version 3. The mean of what an earlier ledger wrote down is unknown.
LAW_SCHEMA = """
ALTER TABLE releases ADD COLUMN mean REAL;
ALTER TABLE releases ADD COLUMN digest TEXT NOT NULL DEFAULT '';
"""

STEPS = (SCHEMA, MODELS_SCHEMA, LAW_SCHEMA)
"""What brings a ledger from each version to the next, from none on."""


class Acquisitions:
    """The acquisitions within one transaction."""

    def __init__(self, connection: sqlite3.Connection, key: Secret) -> None:
        self._connection = connection
        self._key = key
        self._mask, self._order = _bit_key(key)
        self._looks = _Looks()
        for number, look in connection.execute("SELECT acquisition, look FROM looks"):
            self._looks.append(number, look)

    def numbers(self) -> list[int]:
        """Every acquisition of which anything left."""
        rows = self._connection.execute(
            "SELECT DISTINCT acquisition FROM given JOIN releases ON releases.id = release"
            " WHERE status != 'abandoned' ORDER BY acquisition"
        )
        return [number for (number,) in rows]

    def find(self, image: Image) -> set[int]:
        """The acquisitions that an image may be: by its UID or name, by its pixels, and where those are new by its
        likeness, also of an inverted or mirrored copy."""
        found = {number for tag in self._tags(image) for number in self._by_tag(tag)}
        if self._by_tag(self._pixel_tag(image.digest)):
            return found
        return found.union(*(self._looks.near(self._hide(look)) for look in mirrored(image.likeness)))

    def given(self, numbers: Iterable[int]) -> list[Given]:
        """All that left of these acquisitions, oldest first; reservations count."""
        rows = [
            row
            for number in sorted(numbers)
            for row in self._connection.execute(
                "SELECT release, mode, field, geometry, std, clip, mean"
                " FROM given JOIN releases ON releases.id = release"
                " WHERE acquisition = ? AND status != 'abandoned' ORDER BY given.rowid",
                (number,),
            )
        ]
        return [
            Given(
                release_id=row[0],
                mode=row[1],
                field=row[2],
                geometry=row[3],
                std=row[4],
                clip=bool(row[5]),
                mean=row[6],
            )
            for row in rows
        ]

    def add(self, known: set[int], image: Image, given: Given) -> None:
        """Write down an image that may be any of the acquisitions `known`, under each of them; or under a new one."""
        tags, hidden = self._tags(image), self._hide(image.likeness)
        values = (given.field, given.geometry, given.std)
        for number in known or {self._new()}:
            self._connection.executemany("INSERT OR IGNORE INTO tags VALUES (?, ?)", [(tag, number) for tag in tags])
            if self._looks.append(number, hidden):
                self._connection.execute("INSERT INTO looks VALUES (?, ?)", (number, hidden))
            self._connection.execute("INSERT INTO given VALUES (?, ?, ?, ?, ?)", (given.release_id, number, *values))

    def _new(self) -> int:
        row = self._connection.execute("INSERT INTO acquisitions DEFAULT VALUES RETURNING id").fetchone()
        return int(row[0])

    def _by_tag(self, tag: bytes) -> set[int]:
        return {number for (number,) in self._connection.execute("SELECT acquisition FROM tags WHERE tag = ?", (tag,))}

    def _tags(self, image: Image) -> list[bytes]:
        """Keyed hashes by which an image is known again for certain: of its pixels, and of its UID or else its name."""
        tags = [self._pixel_tag(image.digest)]
        if image.sop_uid:
            tags.append(self._key.derive("veilray ledger SOP Instance UID", image.sop_uid.encode()).reveal())
        elif image.name:
            tags.append(self._key.derive("veilray ledger name of an image", *map(str.encode, image.name)).reveal())
        return tags

    def _pixel_tag(self, digest: bytes) -> bytes:
        return self._key.derive("veilray ledger pixels", digest).reveal()

    def _hide(self, look: bytes) -> bytes:
        # Which bit is which, and its sign, hang on the key; how many bits differ between two likenesses does not.
        bits = np.unpackbits(np.frombuffer(look, dtype=np.uint8))[self._order]
        return np.packbits(bits ^ self._mask).tobytes()


class _Looks:
    """Hidden likenesses with their acquisitions, in arrays that grow."""

    def __init__(self) -> None:
        self._words = np.zeros((1024, LIKENESS_BYTES // 8), dtype=np.uint64)
        self._numbers = np.zeros(1024, dtype=np.int64)
        self._known: set[tuple[int, bytes]] = set()

    def append(self, number: int, look: bytes) -> bool:
        """Whether it was new."""
        count = len(self._known)
        if (number, look) in self._known:
            return False
        if count == len(self._numbers):
            self._words = np.concatenate([self._words, np.zeros_like(self._words)])
            self._numbers = np.concatenate([self._numbers, np.zeros_like(self._numbers)])
        self._words[count], self._numbers[count] = as_words(look), number
        self._known.add((number, look))
        return True

    def near(self, look: bytes) -> set[int]:
        count = len(self._known)
        close = is_near(distances(self._words[:count], as_words(look)))
        return {int(number) for number in self._numbers[:count][close]}


def _bit_key(
    key: Secret,
) -> tuple[np.ndarray[tuple[int], np.dtype[np.uint8]], np.ndarray[tuple[int], np.dtype[np.intp]]]:
    """A mask and an order of the 256 bits of a likeness, from the ledger's key."""
    mask = np.unpackbits(np.frombuffer(key.derive("veilray ledger mask").reveal(), dtype=np.uint8))
    blocks = (key.derive("veilray ledger order", bytes([number])).reveal() for number in range(64))
    return mask, np.argsort(np.frombuffer(b"".join(blocks), dtype=">u8"), kind="stable")
