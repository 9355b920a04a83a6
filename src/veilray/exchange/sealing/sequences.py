"""What a key folder remembers of the exchange: sequences that only grow, and a log.

    KEYS/exchange/            0700
      sequences.json          last sequence sealed for each receiver, last bundle opened of each sender
      log.jsonl               one line for each bundle sealed, opened or refused, and each release refused
      lock                    held while sequences.json changes

The log holds fingerprints, bundle ids, counts and reasons: no file names, no paths, nothing of what a bundle contains.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from veilray.errors import BundleError, DataError, RefusedError
from veilray.exchange.keys.keyfile import read_private, write_private
from veilray.exchange.log_lines import add_line
from veilray.exchange.sealing.manifest import MAX_SEQUENCE, Manifest, Sha256

FOLDER = "exchange"
SEQUENCES = "sequences.json"
LOG = "log.jsonl"
LOCK = "lock"
_MOST_BYTES = 2**20


class _Opened(BaseModel):
    """The newest bundle that was opened of a sender."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sequence: int = Field(ge=1, lt=MAX_SEQUENCE)
    bundle_id: str


class _State(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = Field(default=1, ge=1, le=1)
    sealed: dict[Sha256, int] = {}
    """Receiver's fingerprint -> last sequence."""
    opened: dict[Sha256, _Opened] = {}
    """Sender's fingerprint -> newest bundle."""


class Sequences:
    """The sequences of one key folder; safe with several processes at once and against a kill at any moment."""

    def __init__(self, keys: Path) -> None:
        self.folder = keys / FOLDER

    def next_for(self, receivers: tuple[str, ...]) -> int:
        """Take the next sequence for these receivers: beyond any before, and at least the present second.

        The clock lets a key folder restored from a backup go on without repeating itself.
        """
        with self._locked():
            state = self._read()
            last = max((state.sealed.get(receiver, 0) for receiver in receivers), default=0)
            sequence = max(last + 1, int(time.time()))
            self._write(state.model_copy(update={"sealed": state.sealed | dict.fromkeys(receivers, sequence)}))
            return sequence

    def check(self, manifest: Manifest, senders: Sequence[str]) -> None:
        """BundleError where a bundle is older than the newest opened of its sender, or has its sequence but not its id.

        The newest itself may be opened as often as one likes. `senders` are all fingerprints that the sender has had.
        """
        _check(self._read(), manifest, senders)

    def record(self, manifest: Manifest, senders: Sequence[str]) -> None:
        """Note that a bundle was opened, once it has been checked as a whole. BundleError as `check`."""
        with self._locked():
            state = self._read()
            _check(state, manifest, senders)
            opened = _Opened(sequence=manifest.sequence, bundle_id=manifest.bundle_id)
            self._write(state.model_copy(update={"opened": state.opened | {manifest.sender: opened}}))

    def _read(self) -> _State:
        path = self.folder / SEQUENCES
        if not path.exists():
            return _State()
        try:
            return _State.model_validate_json(read_private(path, most=_MOST_BYTES))
        except ValidationError:
            raise DataError(f"{path} is damaged; restore a backup of the key folder") from None

    def _write(self, state: _State) -> None:
        write_private(self.folder / SEQUENCES, (state.model_dump_json(indent=2) + "\n").encode())

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.folder.mkdir(mode=0o700, exist_ok=True)
        handle = os.open(self.folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)


def _check(state: _State, manifest: Manifest, senders: Sequence[str]) -> None:
    opened = [state.opened[sender] for sender in {manifest.sender, *senders} if sender in state.opened]
    newest = max(opened, key=lambda one: one.sequence, default=None)
    if newest is None or manifest.sequence > newest.sequence or manifest.bundle_id == newest.bundle_id:
        return
    raise BundleError(
        f"the bundle was sealed before another one of the same sender that was opened already (sequence "
        f"{manifest.sequence}, opened: {newest.sequence}); if it is wanted, ask the sender to seal it again",
        reason="replay",
    )


def log(keys: Path, event: str, **facts: str | int | list[str]) -> None:
    """Add a line to the log of a key folder. Facts must name no file and nothing of a patient."""
    folder = keys / FOLDER
    folder.mkdir(mode=0o700, exist_ok=True)
    add_line(folder / LOG, event, **facts)


@contextmanager
def logging_refusals(keys: Path, reason: str) -> Iterator[None]:
    """Add a line to the log of a key folder where the block refuses something; the reason is one word."""
    try:
        yield
    except RefusedError:
        log(keys, "refused", reason=reason)
        raise
