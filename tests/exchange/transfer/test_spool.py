"""Room for bundles: what one sender abandons keeps no other from sending."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.exchange.sites import make_sites

from veilray.exchange.keys.folder import KeyFolder
from veilray.exchange.transfer.config import Sender
from veilray.exchange.transfer.spool import EMPTY_SECONDS, STALE_SECONDS, NoRoomError, Spool
from veilray.exchange.transfer.ticket import Ticket

MB = 10**6


@pytest.fixture(scope="module")
def senders(tmp_path_factory: pytest.TempPathFactory) -> list[Sender]:
    """Two sites that may send 10 MB each."""
    sites = make_sites(tmp_path_factory.mktemp("keys"))
    return [_sender(sites.one), _sender(sites.two)]


def _sender(keys: KeyFolder) -> Sender:
    return Sender(card=keys.card, certificates=frozenset(), quota=10 * MB, largest=10 * MB)


def _ticket(sender: Sender, digit: str, *, size: int = 8 * MB) -> Ticket:
    return Ticket(sender=sender.card.fingerprint, sha256=digit * 64, size=size)


@pytest.fixture
def spool(tmp_path: Path, senders: list[Sender], monkeypatch: pytest.MonkeyPatch) -> Spool:
    """A spool on a disk of 10 MB."""
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=10 * MB))
    return Spool(tmp_path, senders, keep_free=0)


def _age(spool: Spool, seconds: float) -> None:
    then = time.time() - seconds
    for file in spool.path.glob("*/.parts/*"):
        os.utime(file, (then, then))


def _begin(spool: Spool, sender: Sender, digit: str, *, bytes_sent: int) -> None:
    upload = spool.offer(sender, _ticket(sender, digit))
    assert upload is not None
    if bytes_sent:
        upload.write(bytes(bytes_sent))
        upload.commit()


@pytest.mark.parametrize(("bytes_sent", "patience"), [(0, EMPTY_SECONDS), (1000, STALE_SECONDS)])
@pytest.mark.parametrize("restarted", [False, True])
def test_what_one_sender_abandons_gives_way_to_another(
    spool: Spool, senders: list[Sender], bytes_sent: int, patience: float, restarted: bool
) -> None:
    first, second = senders
    _begin(spool, first, "a", bytes_sent=bytes_sent)
    if restarted:
        spool = Spool(spool.path, senders, keep_free=0)
    _age(spool, patience - 60)
    with pytest.raises(NoRoomError, match="disk has no room"):
        spool.offer(second, _ticket(second, "b"))
    _age(spool, patience + 60)
    assert spool.offer(second, _ticket(second, "b")) is not None
    assert [file.name[0] for file in spool.path.glob("*/.parts/*")] == ["b"]
    assert spool.upload(first, "a" * 64) is None


def test_an_upload_that_is_written_to_stays(spool: Spool, senders: list[Sender]) -> None:
    first, second = senders
    _begin(spool, first, "a", bytes_sent=0)
    upload = spool.upload(first, "a" * 64)
    assert upload is not None
    upload.busy = True
    _age(spool, 2 * STALE_SECONDS)
    with pytest.raises(NoRoomError):
        spool.offer(second, _ticket(second, "b"))
    assert spool.upload(first, "a" * 64) is upload


def test_a_damaged_state_hinders_nobody(spool: Spool, senders: list[Sender]) -> None:
    first, second = senders
    _begin(spool, first, "a", bytes_sent=3 * MB)
    state = spool.folder(first) / ".parts" / f"{'a' * 64}.json"
    state.write_text("{")
    spool = Spool(spool.path, senders, keep_free=0)
    assert spool.offer(second, _ticket(second, "b")) is not None
    with pytest.raises(NoRoomError, match="quota"):  # what lies there counts all the same
        spool.offer(first, _ticket(first, "c"))
    assert spool.offer(first, _ticket(first, "d", size=MB)) is not None
    lines = [json.loads(line) for line in (spool.path / "log.jsonl").read_text().splitlines()]
    assert [(line["event"], line["sender"]) for line in lines] == [("damaged", first.card.name)]
    for sender, digit in ((second, "b"), (first, "d")):
        spool.close(sender, digit * 64)
        (spool.folder(sender) / ".parts" / f"{digit * 64}.json").unlink()
    again = spool.offer(first, _ticket(first, "a"))
    assert again is not None
    assert again.offset == 0
