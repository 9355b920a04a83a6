"""Sending and receiving over loopback: whole or not at all, by whom it should be, and whatever the network does."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.responses import JSONResponse
from tests.command_line import done, start, veilray
from tests.exchange.sites import make_sites, sealed
from tests.exchange.transfer.receivers import Place, client, offered, put_header, raw, receiving, status_of

from veilray.errors import BundleError, DataError, RefusedError, UsageError, VeilrayError
from veilray.exchange.keys.folder import KeyFolder
from veilray.exchange.transfer import server, spool
from veilray.exchange.transfer.authority import make_test_authority
from veilray.exchange.transfer.client import ClientTls, Sent, send_bundle
from veilray.exchange.transfer.config import load_receive_config
from veilray.exchange.transfer.server import AtMost
from veilray.exchange.transfer.ticket import SignedTicket, check_ticket, make_ticket

SIZE = 300_000


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keys of the sites, a bundle, and two test authorities."""
    folder = tmp_path_factory.mktemp("shared")
    sites = make_sites(folder / "keys")
    sealed(folder, sites)
    # Only its beginning tells a bundle from other files: this one is large, and cheap to make.
    (folder / "large.veil").write_bytes(b"age-encryption.org/v1\n" + bytes(range(250)) * (SIZE // 250))
    make_test_authority(folder / "tls")
    make_test_authority(folder / "other-tls")
    return folder


@pytest.fixture
def place(shared: Path, tmp_path: Path) -> Place:
    tls = shared / "tls"
    shows = ClientTls(authority=tls / "ca.pem", certificate=tls / "client.pem", key=tls / "client.key")
    return Place(tmp_path, shows, KeyFolder.open(shared / "keys/two"))


@pytest.fixture
def bundle(shared: Path) -> Path:
    return shared / "a.veil"


@pytest.fixture
def large(shared: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle of several chunks, which are small here."""
    monkeypatch.setattr(server, "CHUNK", 65_536)
    return shared / "large.veil"


def send(place: Place, bundle: Path, address: str, **options: object) -> Sent:
    given_options = {"tls": place.tls, "pause": lambda seconds: time.sleep(0.05), **options}
    return send_bundle(bundle, address, keys=place.sender, **given_options)  # type: ignore[arg-type]


def whole(place: Place) -> list[bytes]:
    return [file.read_bytes() for file in place.spool.glob("*.veil")]


def leftovers(place: Place) -> list[Path]:
    return list((place.spool / ".parts").iterdir())


def test_a_bundle_arrives_once_however_often_it_is_sent(place: Place, bundle: Path) -> None:
    with receiving(place) as address:
        assert not send(place, bundle, address).already_there
        assert whole(place) == [bundle.read_bytes()]
        again = send(place, bundle, address)
        assert (again.already_there, again.taken_away) == (True, False)
        next(place.spool.glob("*.veil")).unlink()  # opened, and taken away
        again = send(place, bundle, address)
        assert (again.already_there, again.taken_away) == (True, True)
        assert whole(place) == []
        (place.spool / ".done" / again.sha256).unlink()  # the way out, where it was lost
        assert not send(place, bundle, address).already_there
        assert whole(place) == [bundle.read_bytes()]
    assert not leftovers(place)
    assert [line["event"] for line in place.log()] == ["received", "received"]
    assert "a.veil" not in str(place.log())


def test_what_is_received_is_private(place: Place, bundle: Path) -> None:
    with receiving(place) as address:
        send(place, bundle, address)
    assert next(place.spool.glob("*.veil")).stat().st_mode & 0o777 == 0o600
    assert place.spool.stat().st_mode & 0o777 == 0o700


def _send_until(place: Place, bundle: Path, address: str, *, chunks: int) -> None:
    """Send some chunks, then stop as by Ctrl-C."""
    seen: list[int] = []

    def stop(count: int) -> None:
        seen.append(count)
        if len(seen) == chunks:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        send(place, bundle, address, advance=stop)


def test_an_interrupted_upload_goes_on_where_it_was(place: Place, large: Path) -> None:
    with receiving(place) as address:
        _send_until(place, large, address, chunks=2)
        counts: list[int] = []
        with client(place, address) as web:
            _, path = offered(place, web, large)
            assert web.put(path, params={"offset": 0}, content=b"x").json()["offset"] == 2 * 65_536
        send(place, large, address, advance=counts.append, pause=time.sleep)
        assert counts[0] == 2 * 65_536
        assert sum(counts) == large.stat().st_size
    assert whole(place) == [large.read_bytes()]


def test_a_restarted_server_goes_on_too(place: Place, large: Path) -> None:
    with receiving(place) as address:
        _send_until(place, large, address, chunks=3)
    part = next((place.spool / ".parts").glob("*.part"))
    with part.open("ab") as stream:
        stream.write(b"never flushed")  # what a power cut may leave behind the last flush
    with receiving(place) as address:
        counts: list[int] = []
        send(place, large, address, advance=counts.append, pause=time.sleep)
        assert counts[0] == 3 * 65_536
    assert whole(place) == [large.read_bytes()]


def test_a_connection_that_breaks_within_a_chunk_leaves_a_sound_upload(place: Place, large: Path) -> None:
    data = large.read_bytes()
    with receiving(place) as address, client(place, address) as web:
        _, path = offered(place, web, large)
        with raw(place, address) as connection:
            connection.sendall(put_header(path, length=60_000) + data[:30_000])
        send(place, large, address, pause=time.sleep)  # the server may be at the broken chunk for a while
    assert whole(place) == [data]


def test_what_was_taken_of_a_chunk_is_not_sent_twice(
    place: Place, large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "BLOCK", 10_000)
    monkeypatch.setattr(server, "_WRITE", 10_000)
    taken = threading.Event()
    write = spool.Upload.write

    def watched(self: spool.Upload, block: bytes) -> None:
        write(self, block)
        taken.set()

    monkeypatch.setattr(spool.Upload, "write", watched)
    with receiving(place) as address, client(place, address) as web:
        signed, path = offered(place, web, large)
        with raw(place, address) as connection:
            connection.sendall(put_header(path, length=60_000) + large.read_bytes()[:30_000])
            assert taken.wait(timeout=60)
        for _ in range(400):
            answer = web.post("/v1/uploads", content=signed.model_dump_json()).json()
            if answer["offset"]:
                break
            time.sleep(0.05)
        assert 10_000 <= answer["offset"] <= 30_000
        counts: list[int] = []
        send(place, large, address, advance=counts.append, pause=time.sleep)
        assert counts[0] >= 10_000
    assert whole(place) == [large.read_bytes()]


def test_a_server_that_stops_before_the_last_step_takes_it_later(
    place: Place, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with receiving(place) as address, client(place, address) as web:
        _, path = offered(place, web, bundle)
        with monkeypatch.context() as broken:
            broken.setattr(spool.Upload, "finish", lambda self: 1 / 0)
            assert web.put(path, params={"offset": 0}, content=bundle.read_bytes()).status_code == 500
    assert not whole(place)
    with receiving(place) as address:
        assert send(place, bundle, address).already_there  # every byte of it
    assert whole(place) == [bundle.read_bytes()]
    assert not leftovers(place)


def test_what_is_not_the_next_chunk_is_refused(place: Place, large: Path) -> None:
    with receiving(place) as address, client(place, address) as web:
        _, path = offered(place, web, large)
        assert web.put(path, params={"offset": 5}, content=b"x").status_code == 409
        assert web.put(path, params={"offset": -1}, content=b"x").status_code == 409
        assert web.put(path, params={"offset": "0x"}, content=b"x").status_code == 409
        assert web.put(path, content=b"x").status_code == 409
        assert web.put(path, params={"offset": 0}, content=b"").status_code == 413
        assert web.put(path, params={"offset": 0}, content=iter([b"x"])).status_code == 411
        assert web.put(path, params={"offset": 0}, content=bytes(65_537)).status_code == 413
        assert web.put(f"/v1/uploads/{'0' * 64}", params={"offset": 0}, content=b"x").status_code == 404
        assert web.put("/v1/uploads/..%2f..%2fetc", params={"offset": 0}, content=b"x").status_code == 404
        assert web.get("/").status_code == 404
        with raw(place, address) as connection:  # 10 TB announced: refused before any of it is read
            connection.sendall(put_header(path, length=10**13))
            assert status_of(connection) == 413
    assert not whole(place)


def test_a_chunk_beyond_the_signed_size_is_refused(place: Place, bundle: Path) -> None:
    with receiving(place) as address, client(place, address) as web:
        _, path = offered(place, web, bundle)
        assert web.put(path, params={"offset": 0}, content=bundle.read_bytes() + b"x").status_code == 413


def test_two_uploads_of_one_bundle_at_once(place: Place, large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = large.read_bytes()
    begun, blocks = threading.Event(), server._blocks

    def watched(request: Request, patience: float) -> AsyncIterator[bytes]:
        begun.set()
        return blocks(request, patience)

    monkeypatch.setattr(server, "_blocks", watched)
    with receiving(place) as address, client(place, address) as web:
        _, path = offered(place, web, large)
        with raw(place, address) as first:
            first.sendall(put_header(path, length=60_000) + data[:100])
            assert begun.wait(timeout=60)
            assert web.put(path, params={"offset": 0}, content=data[:60_000]).status_code == 423
            first.sendall(data[100:60_000])
            assert status_of(first) == 200
        # With the pauses of a real sender, or a slow disk makes one give up that the others are ahead of.
        with ThreadPoolExecutor(3) as pool:
            sending = [pool.submit(send, place, large, address, pause=time.sleep) for _ in range(3)]
            assert {each.result(timeout=120).size for each in sending} == {len(data)}
    assert whole(place) == [data]
    assert not leftovers(place)


def test_other_bytes_than_were_signed_are_dropped(place: Place, bundle: Path) -> None:
    forged = bytearray(bundle.read_bytes())
    forged[-1] ^= 1
    with receiving(place) as address, client(place, address) as web:
        _, path = offered(place, web, bundle)
        answer = web.put(path, params={"offset": 0}, content=bytes(forged))
        assert answer.status_code == 422
        assert not whole(place)
        assert not leftovers(place)
        send(place, bundle, address)
    assert whole(place) == [bundle.read_bytes()]
    assert place.log()[0] == {**place.log()[0], "event": "refused", "reason": "hash", "sender": "two"}


def test_slow_clients_are_left(place: Place, large: Path) -> None:
    with receiving(place, patience_seconds=1.5) as address, client(place, address) as web:
        _, path = offered(place, web, large)
        with raw(place, address) as silent, raw(place, address) as slow_header, raw(place, address) as slow_body:
            slow_header.sendall(b"POST /v1/uploads HTTP/1.1\r\nHost:")
            slow_body.sendall(put_header(path, length=60_000) + large.read_bytes()[:1000])
            assert status_of(slow_body) == 408
            assert status_of(silent) == 0
            assert status_of(slow_header) == 0
        answer = web.post("/v1/uploads", content=make_ticket(large, keys=place.sender).model_dump_json())
        assert answer.json()["offset"] == 1000
    # The header and the body; who says nothing asks for nothing.
    assert [(line["reason"], line["status"]) for line in place.log()] == [("slow", 408)] * 2


def test_requests_that_are_none_are_logged(place: Place, bundle: Path) -> None:
    with receiving(place) as address, client(place, address) as web, raw(place, address) as garbled:
        assert web.get("/admin?patient=Doe").status_code == 404
        assert web.delete("/v1/uploads").status_code == 405
        garbled.sendall(b"\0\1 no HTTP\r\n\r\n")
        assert status_of(garbled) == 400
    refused = [(line["status"], line["reason"], line.get("sender")) for line in place.log()]
    assert refused == [(404, "request", "two"), (405, "request", "two"), (400, "header", None)]
    assert "Doe" not in str(place.log())


def test_silent_connections_shut_nobody_out(place: Place, bundle: Path) -> None:
    with receiving(place, patience_seconds=10.0, max_connections=4) as address, contextlib.ExitStack() as stack:
        where = urlsplit(address)
        there = (where.hostname, where.port)
        # Those that the server let go end at once, the others after its patience: asyncio's own is a minute.
        silent = [stack.enter_context(socket.create_connection(there, timeout=30)) for _ in range(40)]
        assert not send_bundle(bundle, address, keys=place.sender, tls=place.tls, pause=_no_pause).already_there
        assert [_ends(connection) for connection in silent] == [True] * 40
    assert [line["reason"] for line in place.log() if line["event"] == "refused"] == ["connections"]


def _no_pause(seconds: float) -> None:
    raise AssertionError("the server did not answer at once")


def _ends(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def test_a_certificate_of_another_authority_is_refused(place: Place, bundle: Path, shared: Path) -> None:
    other = shared / "other-tls"
    foreign = ClientTls(authority=place.tls.authority, certificate=other / "client.pem", key=other / "client.key")
    with receiving(place) as address:
        with pytest.raises(VeilrayError, match=r"refuses the client's certificate|no answer ever came"):
            send(place, bundle, address, tls=foreign)
        with pytest.raises(RefusedError, match="not of the given authority"):
            send(place, bundle, address, tls=ClientTls(authority=other / "ca.pem", **_shown(place)))
        own = socket.create_connection(address.removeprefix("https://").split(":"), timeout=30)
        own.close()
    assert not whole(place)
    refused = [line for line in place.log() if line["reason"] == "tls"]
    assert "CERTIFICATE_VERIFY_FAILED" in {line["detail"] for line in refused}


def _shown(place: Place) -> dict[str, Path]:
    return {"certificate": place.tls.certificate, "key": place.tls.key}


def test_a_certificate_of_the_authority_that_no_sender_has_is_refused(place: Place, bundle: Path, shared: Path) -> None:
    other = shared / "other-tls"
    known = ClientTls(authority=place.tls.authority, certificate=other / "client.pem", key=place.tls.key)
    with receiving(Place(place.folder, known, place.sender)) as address:
        with pytest.raises(RefusedError, match="not one of a sender known here"):
            send(place, bundle, address)
        with client(place, address) as web:
            header = {"x-client-certificate": "anything", "state": "anything"}
            assert web.put("/v1/uploads/" + "0" * 64, content=b"x", headers=header).status_code == 403


def test_the_ticket_must_be_signed_by_the_owner_of_the_certificate(place: Place, bundle: Path, shared: Path) -> None:
    stranger = KeyFolder.open(shared / "keys/stranger")
    with receiving(place) as address:
        with pytest.raises(RefusedError, match="not from two"):
            send(Place(place.folder, place.tls, stranger), bundle, address)
        signed = make_ticket(bundle, keys=stranger)
        ticket = signed.ticket.model_copy(update={"sender": place.sender.card.fingerprint})
        with client(place, address) as web:
            forged = SignedTicket(ticket=ticket, signature=signed.signature)
            assert web.post("/v1/uploads", content=forged.model_dump_json()).status_code == 403
            assert web.post("/v1/uploads", content=b"{" * 10_000).status_code == 403
    assert [line["reason"] for line in place.log()] == ["sender", "signature", "ticket"]


@pytest.mark.parametrize(
    ("sender", "options", "message"),
    [
        ("largest_gb = 0.0002", {}, "are allowed"),
        ("quota_gb = 0.0002", {}, "quota of two"),
        ("", {"keep_free_gb": 1e6}, "no room"),
    ],
)
def test_limits_are_kept(place: Place, shared: Path, sender: str, options: dict[str, object], message: str) -> None:
    with receiving(place, sender=sender, **options) as address, pytest.raises(VeilrayError, match=message):
        send(place, shared / "large.veil", address)
    assert not leftovers(place)


def test_the_quota_counts_what_lies_there_and_what_is_on_its_way(place: Place, bundle: Path, large: Path) -> None:
    taken = large.stat().st_size + bundle.stat().st_size - 1
    with receiving(place, sender=f"quota_gb = {taken / 1e9}") as address:
        _send_until(place, large, address, chunks=1)
        with pytest.raises(VeilrayError, match="quota"):
            send(place, bundle, address)
        send(place, large, address)
        with pytest.raises(VeilrayError, match="quota"):
            send(place, bundle, address)
        next(place.spool.glob("*.veil")).unlink()
        send(place, bundle, address)


def test_keys_that_others_can_read_are_refused(place: Place, bundle: Path, tmp_path: Path) -> None:
    key = tmp_path / "open.key"
    key.write_bytes(place.tls.key.read_bytes())
    key.chmod(0o640)
    readable = ClientTls(authority=place.tls.authority, certificate=place.tls.certificate, key=key)
    with pytest.raises(RefusedError, match="open to other users"):
        send(place, bundle, "https://127.0.0.1:1", tls=readable)
    with pytest.raises(RefusedError, match="open to other users"), receiving(place, key=str(key)):
        pass


@contextlib.contextmanager
def _hanging_up() -> Iterator[str]:
    """The address of somebody who closes every connection at once."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def hang_up() -> None:
            with contextlib.suppress(OSError):
                while True:
                    listener.accept()[0].close()

        thread = threading.Thread(target=hang_up, daemon=True)
        thread.start()
        yield f"https://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(timeout=10)


def test_the_extra_is_named_where_a_package_is_missing(
    place: Place, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "uvicorn" else find(name))
    tls = ["--ca", place.tls.authority, "--cert", place.tls.certificate, "--key", place.tls.key]
    for words in (
        ["receive", place.write_config()],
        ["send", bundle, "--to", "https://127.0.0.1:1", "--keys", place.sender.path, *tls],
    ):
        result = veilray(*words)
        assert (result.status, len(result.lines)) == (2, 1)
        assert "need uvicorn: install Veilray with its extra 'sites'" in result.err


def test_nobody_there_and_wrong_usage(place: Place, bundle: Path, tmp_path: Path) -> None:
    for address in ("https://127.0.0.1:1", "https://nobody.invalid:8443"):
        with pytest.raises(VeilrayError, match="cannot be reached"):
            send(place, bundle, address, pause=_no_pause)
    pauses: list[float] = []
    notices: list[str] = []
    with _hanging_up() as address, pytest.raises(VeilrayError, match="no answer ever came"):
        send(place, bundle, address, pause=pauses.append, notice=notices.append)
    assert pauses == sorted(pauses)
    assert len(pauses) == len(notices) == 7
    assert notices[0].startswith("the connection failed: ")
    assert notices[0].endswith("; trying again in 0.5 s")
    for address in ("http://127.0.0.1:1", "127.0.0.1", "https://"):
        with pytest.raises(UsageError, match="not an address"):
            send(place, bundle, address)
    (tmp_path / "plain").write_bytes(b"a release, not sealed")
    with pytest.raises(UsageError, match="not encrypted"):
        send(place, tmp_path / "plain", "https://127.0.0.1:1")
    with pytest.raises(UsageError, match="TLS client"):
        send(place, bundle, "https://127.0.0.1:1", tls=ClientTls(authority=bundle, **_shown(place)))


def test_a_bundle_that_shrinks_meanwhile_is_an_error(place: Place, large: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.veil"
    own.write_bytes(large.read_bytes())

    def shrink(count: int) -> None:
        own.write_bytes(own.read_bytes()[:1000])

    with receiving(place) as address, pytest.raises(DataError, match="shorter"):
        send(place, own, address, advance=shrink)


@contextlib.contextmanager
def _proxy() -> Iterator[tuple[str, list[bytes]]]:
    """A proxy that knows CONNECT and nothing else, for one connection."""
    listener = socket.create_server(("127.0.0.1", 0))
    asked: list[bytes] = []

    def pump(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def run() -> None:
        inside, _ = listener.accept()
        request = b""
        while not request.endswith(b"\r\n\r\n"):
            request += inside.recv(1)
        asked.append(request.splitlines()[0])
        host, _, port = request.split()[1].decode().partition(":")
        outside = socket.create_connection((host, int(port)))
        inside.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        back = threading.Thread(target=pump, args=(outside, inside))
        back.start()
        pump(inside, outside)
        back.join()
        inside.close()
        outside.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", asked
    finally:
        thread.join(timeout=30)
        listener.close()


def test_a_proxy_is_gone_through(place: Place, bundle: Path) -> None:
    with receiving(place) as address, _proxy() as (proxy, asked):
        send(place, bundle, address, proxy=proxy)
        assert asked == [f"CONNECT {address.removeprefix('https://')} HTTP/1.1".encode()]
    assert whole(place) == [bundle.read_bytes()]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prot": 1}, "prot"),
        ({"port": 70_000}, "port"),
        ({"patience_seconds": 0}, "patience_seconds"),
    ],
)
def test_a_wrong_configuration_is_named(place: Place, change: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_receive_config(place.write_config(**change))


def test_the_example_of_the_documentation_is_a_configuration() -> None:
    config = load_receive_config(Path(__file__).parents[3] / "docs" / "examples" / "receive.toml")
    assert (config.host, len(config.senders)) == ("127.0.0.1", 1)


@settings(max_examples=200)
@given(data=st.binary(max_size=5000), cut=st.integers(0, 400), place=st.integers(0, 400), bit=st.integers(0, 7))
def test_a_ticket_of_any_bytes_is_refused_and_nothing_else(
    shared: Path, data: bytes, cut: int, place: int, bit: int
) -> None:
    keys = KeyFolder.open(shared / "keys/two")
    genuine = make_ticket(shared / "a.veil", keys=keys)
    good = genuine.model_dump_json().encode()
    flipped = bytearray(good)
    flipped[place % len(good)] ^= 1 << bit
    for case in (data, good[:cut], bytes(flipped)):
        try:
            ticket = check_ticket(case, card=keys.card)
        except BundleError:
            continue
        assert ticket == genuine.ticket  # a flipped case of a hexadecimal digit is not taken, white space is


@pytest.mark.slow
def test_the_server_as_a_process_of_its_own(place: Place, bundle: Path) -> None:
    process = start("receive", place.write_config(), folder=place.folder)
    assert process.stdout is not None
    try:
        address = process.stdout.readline().split()[2]
        for _ in range(600):
            with contextlib.suppress(OSError), socket.create_connection(address[8:].split(":"), timeout=5):
                break
            time.sleep(0.1)
        tls = ("--ca", place.tls.authority, "--cert", place.tls.certificate, "--key", place.tls.key)
        said = done("send", bundle, "--to", address, "--keys", place.sender.path, *tls)
        assert "is there, whole" in said.out
        taken = next(place.spool.glob("*.veil")).rename(place.folder / "taken.veil")
        said = done("send", bundle, "--to", address, "--keys", place.sender.path, *tls)
        assert "taken away since; it was not sent again" in said.out
        assert ".done/SHA256" in said.err
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
    finally:
        process.kill()
    assert taken.read_bytes() == bundle.read_bytes()
    assert place.tls.key.read_text() not in out + err


def test_requests_beyond_the_most_at_once_are_told_so_and_counted() -> None:
    sent: list[int] = []
    refused: list[bool] = []

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            sent.append(message["status"])

    async def nothing() -> Any:
        return {"type": "http.request"}

    async def play() -> None:
        leave = asyncio.Event()

        async def waits(scope: Any, receive: Any, send: Any) -> None:
            await leave.wait()
            await JSONResponse({})(scope, receive, send)

        app = AtMost(waits, most=1, on_refusal=lambda: refused.append(True))
        first = asyncio.create_task(app({"type": "http"}, nothing, send))
        await asyncio.sleep(0)
        await app({"type": "http"}, nothing, send)
        assert (sent, refused) == ([503], [True])
        leave.set()
        await first
        await app({"type": "http"}, nothing, send)  # there is room again

    asyncio.run(play())
    assert (sent, len(refused)) == ([503, 200, 200], 1)
