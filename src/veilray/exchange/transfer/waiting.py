"""What lies at a receiver: whole bundles that wait to be opened, and those on their way; not what is in them."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from veilray.exchange.transfer.config import ReceiveConfig, read_senders
from veilray.exchange.transfer.spool import part_progress


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """A bundle at a receiver."""

    sender: str
    """Name on the sender's card."""
    fingerprint: str
    """Of that card."""
    sha256: str
    """Of the encrypted file; its name."""
    size: int
    """Bytes that it has, or will have."""
    there: int
    """Bytes that are safe here."""
    since: datetime
    """When it was whole; of one on its way, when its last bytes came. UTC."""
    path: Path | None
    """The file; None of one on its way."""


def list_waiting(config: ReceiveConfig) -> list[Waiting]:
    """All senders' bundles, oldest first, those on their way last; the server may be running or not.

    Raises UsageError or DataError where the configuration's cards and certificates cannot be read.
    """
    whole, coming = [], []
    for sender in read_senders(config):
        folder = config.spool / sender.card.name
        who = {"sender": sender.card.name, "fingerprint": sender.card.fingerprint}
        # What is opened or finished meanwhile is gone: then it waits no more.
        for file in folder.glob("*.veil"):
            with suppress(FileNotFoundError):
                size, since = file.stat().st_size, _time(file, folder / ".done" / file.stem)
                whole.append(Waiting(**who, sha256=file.stem, size=size, there=size, since=since, path=file))
        for file in (folder / ".parts").glob("*.json"):
            with suppress(FileNotFoundError):
                size, there = part_progress(file)
                coming.append(Waiting(**who, sha256=file.stem, size=size, there=there, since=_time(file), path=None))
    return [*sorted(whole, key=lambda one: one.since), *sorted(coming, key=lambda one: one.since)]


def _time(*files: Path) -> datetime:
    """When the last of those of the files that are there changed; FileNotFoundError where the first is gone."""
    times = [files[0].stat().st_mtime, *(file.stat().st_mtime for file in files[1:] if file.exists())]
    return datetime.fromtimestamp(max(times), UTC).replace(microsecond=0)
