"""The release ledger of Site One: what left of which acquisition, when, for whom; and what may leave no more.

A release is reserved before any of it is written, then committed or abandoned. A reservation counts as released until
it is settled, so a kill at any moment errs to the safe side. One transaction examines and reserves, under SQLite's
write lock: two processes cannot both get through what together would be too much.

Acquisitions are kept under keyed hashes of SOP Instance UID (0008,0018) or name, and of pixels; likenesses with keyed
bits. Whoever steals the file alone learns numbers, times, receivers, levels, sizes, and which images look alike; with
the ledger's key besides, whether a given image was released. It must lie on a local disk: network file systems lock
badly.

    with Ledger.open(file, key=key) as ledger:
        ledger.reserve(release, images)     RefusedError where one of them may not leave
        ...                                 write the release
        ledger.commit(release.release_id)   or ledger.abandon(release.release_id), where nothing left the site
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from veilray.errors import DataError, RefusedError, UsageError
from veilray.exchange.keys.keyfile import check_private
from veilray.exchange.keys.secret import Secret
from veilray.exchange.ledger.admission import refusal, sealing_objection
from veilray.exchange.ledger.book import STEPS, Acquisitions
from veilray.exchange.ledger.exposure import Given, objection
from veilray.exchange.ledger.listing import list_events, list_releases
from veilray.exchange.ledger.records import (
    Event,
    Exposure,
    Image,
    Model,
    Objection,
    Override,
    Release,
    ReleaseLine,
    Reserved,
    Status,
    check_request,
)

__all__ = [
    "LEDGER_FILE",
    "Event",
    "Exposure",
    "Image",
    "Ledger",
    "Model",
    "Objection",
    "Override",
    "Release",
    "ReleaseLine",
    "Reserved",
]

LEDGER_FILE = "ledger.db"
_APPLICATION = 0x7665696C  # "veil"
_VERSION = len(STEPS)
_PATIENCE = 60.0  # seconds to wait for another process that writes


class Ledger:
    """An open ledger; a context manager."""

    def __init__(self, connection: sqlite3.Connection, path: Path, key: Secret) -> None:
        self._connection = connection
        self._path = path
        self._key = key

    @classmethod
    def create(cls, path: Path, *, key: Secret) -> None:
        """Make an empty ledger; UsageError where `path` exists."""
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        except FileExistsError:
            raise UsageError(f"{path} already exists; a ledger is never replaced") from None
        connection = sqlite3.connect(path, isolation_level=None)
        try:
            connection.executescript(f"BEGIN IMMEDIATE; {''.join(STEPS)} PRAGMA application_id = {_APPLICATION};")
            connection.execute(f"PRAGMA user_version = {_VERSION}")
            connection.execute("INSERT INTO owner VALUES (?)", (_owner(key),))
            connection.execute("COMMIT")
        finally:
            connection.close()

    @classmethod
    def open(cls, path: Path, *, key: Secret) -> Self:
        """Open a ledger. DataError where it is missing or damaged, RefusedError where it belongs to another key."""
        if not path.is_file():
            raise DataError(f"{path} is missing; restore its backup: a new ledger would forget every release")
        check_private(path, path.stat())
        try:
            uri = f"{path.resolve().as_uri()}?mode=rw"
            connection = sqlite3.connect(uri, uri=True, timeout=_PATIENCE, isolation_level=None)
        except sqlite3.OperationalError as error:
            raise DataError(f"{path} cannot be opened: {error}") from None
        ledger = cls(connection, path, key)
        try:
            with ledger._explaining():
                # EXTRA also flushes the folder once the journal is gone: a commit outlives a power cut.
                connection.execute("PRAGMA synchronous = EXTRA")
                connection.execute("PRAGMA foreign_keys = ON")
                ledger._check()
            ledger._upgrade()
        except BaseException:
            connection.close()
            raise
        return ledger

    def examine(self, release: Release, images: Sequence[Image]) -> list[Objection]:
        """What would be refused, as things stand; nothing is kept."""
        with self._transaction(keep=False):
            return list(self._enter(release, images).objections)

    def reserve(self, release: Release, images: Sequence[Image], *, override: Override | None = None) -> Reserved:
        """Write a release down before any of it exists; from now on it counts.

        RefusedError, and nothing kept, where an image may not leave and there is no `override`; UsageError where the
        release's id is known already.
        """
        check_request(release, images, override)
        with self._transaction():
            found = self._enter(release, images)
            if found.objections and override is None:
                raise RefusedError(refusal(found.objections, len(images)))
            if found.objections and override is not None:
                note = f"{len(found.objections)} images: {override.reason}"
                self._note(release.release_id, "overridden", override.name, note)
            return found

    def commit(self, release_id: str, *, digest: str = "") -> None:
        """The release is whole, with the digest that its record says, and may leave. UsageError if not reserved."""
        with self._transaction():
            self._settle(release_id, "committed")
            self._connection.execute("UPDATE releases SET digest = ? WHERE id = ?", (digest, release_id))
            self._note(release_id, "committed")

    def abandon(self, release_id: str) -> None:
        """The release came to nothing and none of it left: it counts no more. UsageError where it is not reserved."""
        with self._transaction():
            self._settle(release_id, "abandoned")
            self._note(release_id, "abandoned")

    def settle(self, release_id: str, *, left: bool, name: str, reason: str, digest: str = "") -> None:
        """Settle what a killed process left reserved, by a person who looked; `digest` is that of the folder it wrote.

        Without one the release is never sealed unless overridden. UsageError where it is not reserved.
        """
        if not name.strip() or not reason.strip():
            raise UsageError("settling a reservation needs the name of who looked, and what was found")
        with self._transaction():
            self._settle(release_id, "committed" if left else "abandoned")
            self._connection.execute("UPDATE releases SET digest = ? WHERE id = ?", (digest, release_id))
            self._note(release_id, "settled as released" if left else "settled as not released", name, reason)

    def admit(
        self,
        release_id: str,
        *,
        digest: str,
        receivers: Mapping[str, Collection[str]],
        override: Override | None = None,
        event: str = "sealed",
        images: int = 0,
        subtractable: bool = False,
    ) -> str:
        """Let a release, or what `event` says of it, be sealed, and note that; gives an objection that was overridden.

        `receivers` gives each one's fingerprints, former ones too, by name; `images` how many are said to be of it;
        `subtractable` whether its noisy images leave and a seed undoes them. RefusedError where the ledger does not
        know it as made for all of them, or a seed undoes it, and there is no `override`.
        """
        with self._transaction():
            known = {line.release.release_id: line for line in list_releases(self._connection)}
            found = sealing_objection(
                known.get(release_id), digest=digest, receivers=receivers, images=images, subtractable=subtractable
            )
            if found is not None:
                if override is None:
                    how = "Or override (--override-name, --override-reason; both are kept)"
                    raise RefusedError(f"the release may not be sealed, nor what is of it: {found}. {how}")
                note = f"for {', '.join(sorted(receivers))}, though {found}: {override.reason}"
                self._note(release_id, "sealing overridden", override.name, note)
            self._note(release_id, event)
        return found or ""

    def note(self, release_id: str, event: str) -> None:
        """Write down what left under an id and hangs on no release here."""
        with self._transaction():
            self._note(release_id, event)

    def reserve_model(self, release_id: str, model: Model, *, receivers: Sequence[str]) -> None:
        """Write down that a model is to leave; nothing is objected to, since no image does.

        UsageError where the release's id is known already.
        """
        release = Release(release_id=release_id, receivers=tuple(receivers), mode="model-only", source="none")
        with self._transaction():
            self._insert(release, model.images)
            values = (release_id, model.weights_sha256, self.data_tag(model.training_digest), model.patients)
            self._connection.execute("INSERT INTO models VALUES (?, ?, ?, ?)", values)

    def data_tag(self, digest: str) -> str:
        """How the ledger names a cohort or release that models were trained on: 32 hexadecimal digits."""
        return self._key.derive("veilray ledger training data", digest.encode()).reveal()[:16].hex()

    def releases(self) -> list[ReleaseLine]:
        """Every release, models too, oldest first."""
        with self._explaining():
            return list_releases(self._connection)

    def events(self) -> list[Event]:
        """All that happened, oldest first."""
        with self._explaining():
            return list_events(self._connection)

    def exposures(self, images: Sequence[Image] | None = None) -> list[Exposure]:
        """What has left of every acquisition; or, in their order, of those of `images` (their std has no say)."""
        with self._transaction(keep=False):
            book = Acquisitions(self._connection, self._key)
            if images is None:
                return [Exposure(acquisition=number, given=tuple(book.given([number]))) for number in book.numbers()]
            found = [book.find(image) for image in images]
            return [Exposure(acquisition=min(some, default=0), given=tuple(book.given(some))) for some in found]

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _enter(self, release: Release, images: Sequence[Image]) -> Reserved:
        """Examine the images one by one, each also against those before it, and write them down."""
        self._insert(release, len(images))
        book = Acquisitions(self._connection, self._key)
        objections, voided = [], set()
        for number, image in enumerate(images):
            known = book.find(image)
            earlier = book.given(known)
            new = Given(
                release_id=release.release_id,
                mode=release.mode,
                field=self._field(release, image, number),
                geometry=image.geometry,
                std=image.std,
                clip=release.clip,
                mean=release.mean,
            )
            reason = objection(earlier, new)
            if reason is not None:
                objections.append(Objection(image.label or f"image {number + 1}", reason, number))
            if release.mode == "pairs":
                voided |= {one.release_id for one in earlier if one.mode == "noisy"}
            book.add(known, image, new)
        return Reserved(objections=tuple(objections), voided=tuple(sorted(voided - {release.release_id})))

    def _insert(self, release: Release, images: int) -> None:
        values = (release.release_id, _now(), "reserved", json.dumps(release.receivers))
        more = (release.mode, release.source, release.noise_id, release.clip, images, release.mean)
        try:
            self._connection.execute(
                "INSERT INTO releases (id, made, status, receivers, mode, source, noise_id, clip, images, mean)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (*values, *more),
            )
        except sqlite3.IntegrityError:
            raise UsageError(f"release {release.release_id} is in the ledger already") from None
        self._note(release.release_id, "reserved")

    def _field(self, release: Release, image: Image, number: int) -> str:
        if release.source == "secret":
            parts = (release.noise_id.encode(), image.digest, image.geometry.encode())
            return self._key.derive("veilray ledger noise field", *parts).reveal()[:16].hex()
        return f"{release.release_id}/{number}"

    def _settle(self, release_id: str, status: Status) -> None:
        changed = self._connection.execute(
            "UPDATE releases SET status = ? WHERE id = ? AND status = 'reserved'", (status, release_id)
        )
        if changed.rowcount != 1:
            raise UsageError(f"release {release_id} is not reserved in {self._path}; see `veilray ledger list`")

    def _note(self, release_id: str, what: str, name: str = "", reason: str = "") -> None:
        self._connection.execute("INSERT INTO events VALUES (?, ?, ?, ?, ?)", (_now(), release_id, what, name, reason))

    def _check(self) -> None:
        (application,) = self._connection.execute("PRAGMA application_id").fetchone()
        if application != _APPLICATION or not 1 <= self._version() <= _VERSION:
            raise DataError(f"{self._path} is no release ledger of this version; restore its backup")
        owner = self._connection.execute("SELECT tag FROM owner").fetchall()
        if owner != [(_owner(self._key),)]:
            raise RefusedError(f"{self._path} belongs to other keys: restore the ledger and the keys that go together")

    def _version(self) -> int:
        (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        return int(version)

    def _upgrade(self) -> None:
        """Bring a ledger of an earlier version to this one; what is in it stays."""
        if self._version() == _VERSION:
            return
        with self._transaction():
            for step in STEPS[self._version() :]:  # none where another process was quicker
                for statement in filter(str.strip, step.split(";")):
                    self._connection.execute(statement)
            self._connection.execute(f"PRAGMA user_version = {_VERSION}")

    @contextmanager
    def _transaction(self, *, keep: bool = True) -> Iterator[None]:
        with self._explaining():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT" if keep else "ROLLBACK")
            finally:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")

    @contextmanager
    def _explaining(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            busy = "another process has held it for a minute; wait and retry" if "locked" in str(error) else str(error)
            raise DataError(f"{self._path} cannot be used: {busy}") from None
        except sqlite3.DatabaseError as error:
            raise DataError(f"{self._path} is damaged ({error}); restore its backup") from None


def _owner(key: Secret) -> bytes:
    return key.derive("veilray owner of a ledger").reveal()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
