"""What an administrator sees of the bundles at a receiver."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tests.command_line import done, veilray
from tests.exchange.sites import make_sites, sealed
from tests.exchange.transfer.receivers import Place, client, offered, receiving

from veilray.errors import DataError
from veilray.exchange.keys.folder import KeyFolder
from veilray.exchange.transfer import server
from veilray.exchange.transfer.authority import make_test_authority
from veilray.exchange.transfer.client import ClientTls, send_bundle
from veilray.exchange.transfer.config import load_receive_config
from veilray.exchange.transfer.waiting import list_waiting


@pytest.fixture
def place(tmp_path: Path) -> Place:
    sites = make_sites(tmp_path / "keys")
    sealed(tmp_path, sites)
    tls = tmp_path / "tls"
    make_test_authority(tls)
    shows = ClientTls(authority=tls / "ca.pem", certificate=tls / "client.pem", key=tls / "client.key")
    (tmp_path / "place").mkdir()
    return Place(tmp_path / "place", shows, KeyFolder.open(tmp_path / "keys/two"))


def test_an_empty_receiver_says_so(place: Place) -> None:
    said = done("receive", place.write_config(), "--list").out
    assert said == "0 bundles wait, 0 bytes; 0 on their way\n"


def test_whole_bundles_and_those_on_their_way_are_listed(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "CHUNK", 65_536)
    bundle, large = tmp_path / "a.veil", tmp_path / "large.veil"
    large.write_bytes(b"age-encryption.org/v1\n" + bytes(200_000))
    with receiving(place) as address:
        sent = send_bundle(bundle, address, keys=place.sender, tls=place.tls)
        with client(place, address) as web:
            signed, path = offered(place, web, large)
            assert web.put(path, params={"offset": 0}, content=large.read_bytes()[:65_536]).status_code == 200
        config = load_receive_config(place.folder / "receive.toml")
        whole, coming = list_waiting(config)  # while the server runs
    assert (whole.sender, whole.fingerprint) == ("two", place.sender.card.fingerprint)
    assert (whole.sha256, whole.size, whole.there) == (sent.sha256, sent.size, sent.size)
    assert whole.path == place.spool / f"{sent.sha256}.veil"
    assert abs((datetime.now(UTC) - whole.since).total_seconds()) < 60
    assert (coming.sha256, coming.size, coming.there) == (signed.ticket.sha256, signed.ticket.size, 65_536)
    assert coming.path is None
    said = done("receive", place.folder / "receive.toml", "--list").out
    first, second, total = said.splitlines()
    assert sent.sha256 in first
    assert "two" in first
    assert "65,536 bytes are safe" in second
    assert total == f"1 bundles wait, {sent.size:,} bytes; 1 on their way"
    whole.path.unlink()
    assert [one.sha256 for one in list_waiting(config)] == [signed.ticket.sha256]


def test_the_time_is_that_of_the_arrival(place: Place, tmp_path: Path) -> None:
    config = load_receive_config(place.write_config())
    for name, minute in (("b" * 64, 7), ("a" * 64, 9)):
        for file in (place.spool / f"{name}.veil", place.spool / ".done" / name):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(b"x")
            os.utime(file, (minute * 60, minute * 60))
    assert [(one.sha256[0], one.since.minute) for one in list_waiting(config)] == [("b", 7), ("a", 9)]


def test_a_damaged_state_is_told(place: Place) -> None:
    config = load_receive_config(place.write_config())
    (place.spool / ".parts").mkdir(parents=True)
    (place.spool / ".parts/x.json").write_text("{}")
    with pytest.raises(DataError, match="begins anew"):
        list_waiting(config)


def test_options_that_contradict_each_other_are_refused(place: Place, tmp_path: Path) -> None:
    config = place.write_config()
    for words in (["--list"], ["--make-test-ca", tmp_path / "x", "--list"], [config, "--client", "a"]):
        assert veilray("receive", *words).status == 2
