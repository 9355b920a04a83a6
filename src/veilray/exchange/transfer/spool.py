"""Where received bundles lie, and those on their way.

    SPOOL/log.jsonl                  every upload and refusal: sender, hash, size, reason; no file names
    SPOOL/SENDER/SHA256.veil         a whole bundle, to be opened and then moved or deleted
    SPOOL/SENDER/.parts/SHA256.part  one on its way
    SPOOL/SENDER/.parts/SHA256.json  its size and how much of it is safely on the disk
    SPOOL/SENDER/.done/SHA256        it was received, also after the bundle has been taken away

Offers may come from several threads at once; an upload is one thread's at a time.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
import time
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from veilray.errors import BundleError, DataError, VeilrayError
from veilray.exchange.log_lines import add_line
from veilray.exchange.transfer.config import GB, Sender
from veilray.exchange.transfer.ticket import Ticket
from veilray.files import sync, write_json

BLOCK = 2**20
MAX_UPLOADS = 16
"""Uploads of one sender at once."""
STALE_SECONDS = 7 * 24 * 3600.0
"""An upload that nobody went on with for so long gives way."""
EMPTY_SECONDS = 3600.0
"""So does, after this time, one that was offered and of which nothing came."""


class NoRoomError(VeilrayError):
    """A quota or the disk has no room for an upload."""


class _PartState(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    size: int = Field(ge=1)
    offset: int = Field(ge=0)


def part_progress(state: Path) -> tuple[int, int]:
    """Size of an upload that has begun, and how much of it is safe, from its `.json` file.

    FileNotFoundError where it is gone, DataError where it is damaged.
    """
    try:
        known = _PartState.model_validate_json(state.read_bytes())
    except ValidationError:
        raise DataError(f"{state} is damaged; delete it, and the upload begins anew") from None
    return known.size, known.offset


class Upload:
    """A bundle on its way: written block by block, hashed as it comes, safe on the disk up to `offset`."""

    def __init__(self, folder: Path, ticket: Ticket) -> None:
        self.ticket = ticket
        self.busy = False
        """Whether a connection is writing to it."""
        self._folder = folder
        self._part = folder / ".parts" / f"{ticket.sha256}.part"
        self._state = self._part.with_suffix(".json")
        self.offset = self._durable()
        """Bytes that are safe."""
        self._written = self.offset
        self._hash = hashlib.sha256()
        self._hashed = 0

    def write(self, block: bytes) -> None:
        """Append a block; it counts once `commit` is through."""
        if self._hashed != self._written:
            self._rehash()
        with self._part.open("r+b" if self._part.exists() else "wb") as stream:
            stream.seek(self._written)
            stream.write(block)
        self._hash.update(block)
        self._written += len(block)
        self._hashed = self._written

    def commit(self) -> None:
        """Flush what was written to the disk, and note how much that is."""
        written = self._written  # a block that comes meanwhile waits for the next commit
        if written != self.offset:
            sync(self._part)
            write_json(self._state, {"size": self.ticket.size, "offset": written})
            self.offset = written

    @property
    def whole(self) -> bool:
        """Whether every byte has come."""
        return self.offset == self.ticket.size

    def finish(self) -> Path:
        """Give the whole bundle its name; where it has not the hash of its ticket, drop it and raise BundleError."""
        if self._hashed != self._written:
            self._rehash()
        if self._hash.hexdigest() != self.ticket.sha256:
            self.discard()
            raise BundleError("the upload does not have the hash that was signed; it was dropped", reason="hash")
        target = self._folder / f"{self.ticket.sha256}.veil"
        os.truncate(self._part, self.ticket.size)
        self._part.chmod(0o600)
        self._part.replace(target)
        sync(self._folder)
        (self._folder / ".done" / self.ticket.sha256).touch()
        self._state.unlink(missing_ok=True)
        return target

    def discard(self) -> None:
        """Forget what has come."""
        self._part.unlink(missing_ok=True)
        self._state.unlink(missing_ok=True)
        self.offset = self._written = self._hashed = 0
        self._hash = hashlib.sha256()

    def _durable(self) -> int:
        try:
            state = _PartState.model_validate_json(self._state.read_bytes())
            whole = state.size == self.ticket.size and self._part.stat().st_size >= state.offset
        except (OSError, ValidationError):
            return 0
        return state.offset if whole else 0

    def _rehash(self) -> None:
        """After a restart: the hash of what is there."""
        self._hash, left = hashlib.sha256(), self._written
        with self._part.open("rb") as stream:
            while left and (block := stream.read(min(BLOCK, left))):
                self._hash.update(block)
                left -= len(block)
        self._hashed = self._written


class Spool:
    """All senders' folders, within their quotas and the disk's space."""

    def __init__(self, path: Path, senders: list[Sender], *, keep_free: int) -> None:
        self.path = path
        self.keep_free = keep_free
        self._uploads: dict[tuple[str, str], Upload] = {}
        self._offering = threading.Lock()
        self._damaged: set[Path] = set()
        for sender in senders:
            for folder in (self.folder(sender), self.folder(sender) / ".parts", self.folder(sender) / ".done"):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def folder(self, sender: Sender) -> Path:
        """Where a sender's bundles lie."""
        return self.path / sender.card.name

    def received(self, sender: Sender, sha256: str) -> bool:
        """Whether a bundle has come already; it may have been taken away since."""
        return (self.folder(sender) / ".done" / sha256).exists()

    def taken_away(self, sender: Sender, sha256: str) -> bool:
        """Whether a bundle has come and lies here no longer: it was opened, or lost."""
        return self.received(sender, sha256) and not (self.folder(sender) / f"{sha256}.veil").exists()

    def upload(self, sender: Sender, sha256: str) -> Upload | None:
        """An upload that was offered before, since the start of the server."""
        return self._uploads.get((sender.card.name, sha256))

    def offer(self, sender: Sender, ticket: Ticket) -> Upload | None:
        """Begin an upload or go on with it; None where the bundle has come already.

        Raises NoRoomError where it is too large, or a quota or the disk has no room.
        """
        with self._offering:
            known = self.upload(sender, ticket.sha256)
            if known is None and self.received(sender, ticket.sha256):
                return None
            return known if known is not None else self._begin(sender, ticket)

    def close(self, sender: Sender, sha256: str) -> None:
        """Forget an upload that was finished or dropped."""
        self._uploads.pop((sender.card.name, sha256), None)

    def log(self, event: str, **facts: str | int) -> None:
        """Add a line to the log. Facts must name no file and nothing that came from outside unchecked."""
        add_line(self.path / "log.jsonl", event, **facts)

    def _begin(self, sender: Sender, ticket: Ticket) -> Upload:
        if ticket.size > sender.largest:
            raise NoRoomError(f"the bundle has {ticket.size / GB:.2f} GB; {sender.largest / GB:.2f} are allowed")
        self._drop_stale()
        if sum(name == sender.card.name for name, _ in self._uploads) >= MAX_UPLOADS:
            raise NoRoomError(f"{MAX_UPLOADS} uploads are open already; finish one first")
        self._check_room(sender, ticket)
        upload = Upload(self.folder(sender), ticket)
        if not upload.offset:
            upload.discard()
            write_json(self.folder(sender) / ".parts" / f"{ticket.sha256}.json", {"size": ticket.size, "offset": 0})
        self._uploads[sender.card.name, ticket.sha256] = upload
        return upload

    def _check_room(self, sender: Sender, ticket: Ticket) -> None:
        promised = self._promised(self.folder(sender), but=ticket.sha256)
        held = sum(file.stat().st_size for file in self.folder(sender).glob("*.veil"))
        if held + promised + ticket.size > sender.quota:
            raise NoRoomError(
                f"the quota of {sender.card.name} is {sender.quota / GB:.2f} GB, {(held + promised) / GB:.2f} are taken"
            )
        open_bytes = sum(self._promised(folder, but=ticket.sha256, left=True) for folder in self.path.iterdir())
        if shutil.disk_usage(self.path).free - open_bytes - ticket.size < self.keep_free:
            raise NoRoomError("the receiving disk has no room for it")

    def _promised(self, folder: Path, *, but: str, left: bool = False) -> int:
        """Bytes of the uploads that have begun in a folder; what is `left` of them."""
        known = [self._progress(file) for file in (folder / ".parts").glob("*.json") if file.stem != but]
        return sum(size - (offset if left else 0) for size, offset in known)

    def _progress(self, state: Path) -> tuple[int, int]:
        """Size of an upload and how much of it is safe; where that is damaged, what lies there, and a line in the log.

        The sender heals it by offering the bundle again; others need not wait for that.
        """
        try:
            return part_progress(state)
        except DataError:
            if state not in self._damaged:
                self._damaged.add(state)
                self.log("damaged", reason="state", sender=state.parents[1].name)
            part = _stat(state.with_suffix(".part"))
            there = part.st_size if part is not None else 0
            return there, there
        except FileNotFoundError:
            return 0, 0  # it became whole meanwhile

    def _drop_stale(self) -> None:
        """Drop the uploads that nobody goes on with, of all senders: they share the disk."""
        for state in self.path.glob("*/.parts/*.json"):
            key = (state.parents[1].name, state.stem)
            upload, part = self._uploads.get(key), state.with_suffix(".part")
            if upload is not None and upload.busy:
                continue
            changed = [found.st_mtime for found in (_stat(state), _stat(part)) if found is not None]
            _, offset = self._progress(state)
            if changed and time.time() - max(changed) > (STALE_SECONDS if offset else EMPTY_SECONDS):
                self._uploads.pop(key, None)
                part.unlink(missing_ok=True)
                state.unlink(missing_ok=True)


def _stat(file: Path) -> os.stat_result | None:
    try:
        return file.stat()
    except FileNotFoundError:
        return None
