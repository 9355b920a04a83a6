"""A receiving server in a thread of this process, on a free port of loopback, with what a sender needs to reach it."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from veilray.exchange.keys.folder import KeyFolder
from veilray.exchange.transfer.client import ClientTls
from veilray.exchange.transfer.config import load_receive_config
from veilray.exchange.transfer.server import Receiver, make_receiver
from veilray.exchange.transfer.ticket import SignedTicket, make_ticket


@dataclass(frozen=True)
class Place:
    """Where a test's receiver keeps its things, and how its sender shows itself."""

    folder: Path
    tls: ClientTls
    sender: KeyFolder

    @property
    def spool(self) -> Path:
        """What is received from the one sender."""
        return self.folder / "spool" / self.sender.card.name

    def log(self) -> list[dict[str, Any]]:
        """The server's log."""
        path = self.folder / "spool/log.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def write_config(self, *, sender: str = "", **options: object) -> Path:
        """`receive.toml` with the given options, `sender` lines added to the one sender."""
        card = self.folder / "card.json"
        card.write_text(self.sender.card.to_text())
        folder = self.tls.key.parent
        values = {
            "spool": "spool",
            "port": 0,
            "authority": str(folder / "ca.pem"),
            "certificate": str(folder / "server.pem"),
            "key": str(folder / "server.key"),
            "keep_free_gb": 0.0,
        } | options
        lines = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
        shown = json.dumps([str(self.tls.certificate)])
        lines += ["[[senders]]", 'card = "card.json"', f"certificates = {shown}", sender]
        path = self.folder / "receive.toml"
        path.write_text("\n".join(lines) + "\n")
        return path


@contextlib.contextmanager
def receiving(place: Place, *, sender: str = "", **options: object) -> Iterator[str]:
    """The address of a running receiver; it ends with the block."""
    receiver = make_receiver(load_receive_config(place.write_config(sender=sender, **options)))
    thread = threading.Thread(target=receiver.run)
    thread.start()
    try:
        _await_start(receiver)
        yield receiver.address
    finally:
        receiver.server.should_exit = True
        thread.join(timeout=60)
        assert not thread.is_alive()


def _await_start(receiver: Receiver) -> None:
    for _ in range(3000):
        if receiver.server.started:
            return
        time.sleep(0.02)
    raise AssertionError("the server did not start")


def client(place: Place, address: str) -> httpx.Client:
    """Requests as the sender makes them, one by one."""
    return httpx.Client(base_url=address, verify=place.tls.context(), trust_env=False, timeout=30)


def offered(place: Place, web: httpx.Client, bundle: Path) -> tuple[SignedTicket, str]:
    """A ticket that was offered, and the path of its upload."""
    signed = make_ticket(bundle, keys=place.sender)
    answer = web.post("/v1/uploads", content=signed.model_dump_json())
    assert answer.status_code == 200, answer.text
    return signed, f"/v1/uploads/{signed.ticket.sha256}"


def raw(place: Place, address: str) -> ssl.SSLSocket:
    """A connection to write to by hand."""
    parts = urlsplit(address)
    assert parts.hostname is not None
    plain = socket.create_connection((parts.hostname, parts.port), timeout=30)
    return place.tls.context().wrap_socket(plain, server_hostname=parts.hostname)


def put_header(path: str, *, length: int, offset: int = 0) -> bytes:
    """The header of a chunk."""
    return f"PUT {path}?offset={offset} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n".encode()


def status_of(connection: ssl.SSLSocket) -> int:
    """The status that a server answers; 0 where it ends the connection instead."""
    response = http.client.HTTPResponse(connection)
    try:
        response.begin()
    except (http.client.BadStatusLine, ConnectionError, ssl.SSLError):
        return 0
    finally:
        response.close()
    return response.status
