"""Sending a bundle: signed, chunk by chunk, going on where the last attempt ended."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx

from veilray.errors import DataError, RefusedError, UsageError, VeilrayError
from veilray.exchange.tls import client_context
from veilray.exchange.transfer.ticket import SignedTicket, make_ticket
from veilray.exchange.watching import ignore

if TYPE_CHECKING:
    from veilray.exchange.keys.folder import KeyFolder

BLOCK = 2**20
_PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0)
# Answers after which another attempt may do better: slow, behind or busy.
_PASSING = (408, 409, 423, 429, 500, 502, 503, 504)
_REFUSALS = {401: RefusedError, 403: RefusedError, 404: RefusedError, 422: DataError}


@dataclass(frozen=True, kw_only=True)
class ClientTls:
    """What the client shows and whom it believes."""

    authority: Path
    """Certificate authority of the server, PEM."""
    certificate: Path
    """The client's certificate, PEM."""
    key: Path
    """Its private key, PEM, readable by its owner only."""

    def context(self) -> ssl.SSLContext:
        """TLS 1.3 that checks the server's name. RefusedError where others can read the key, UsageError where the files
        do not fit."""
        return client_context(authority=self.authority, certificate=self.certificate, key=self.key)


@dataclass(frozen=True, kw_only=True)
class Sent:
    """What became of a bundle."""

    sha256: str
    """Of the file; the receiver keeps it under this name."""
    size: int
    already_there: bool
    """Whether the receiver had all of it before."""
    taken_away: bool = False
    """Whether it lies there no longer: it was opened, or lost. It is not taken again."""


def send_bundle(
    bundle: Path,
    url: str,
    *,
    keys: KeyFolder,
    tls: ClientTls,
    proxy: str | None = None,
    timeout: float = 60.0,
    advance: Callable[[int], None] | None = None,
    notice: Callable[[str], None] | None = None,
    pause: Callable[[float], None] = time.sleep,
) -> Sent:
    """Send a bundle to a receiving server, `https://host:port`; sent again, it does no harm.

    A connection that breaks is taken up again where the server has the bundle safe, after pauses that grow; after
    7 attempts without progress it gives up, and the next call goes on there. An address that nobody listens at, or that
    is none, ends it at once. `timeout` in seconds is for connecting and for each write; answers may take ten times as
    long. `advance` is called with bytes that the server has, `notice` with a sentence before each pause.

    Raises UsageError for a wrong address, file or proxy, RefusedError where the server refuses the sender or its
    certificate, VeilrayError where it has no room or cannot be reached, DataError where the bundle changed meanwhile.
    """
    if urlsplit(url).scheme != "https" or not urlsplit(url).hostname:
        raise UsageError(f"{url} is not an address such as https://receiver.example:8443")
    signed = make_ticket(bundle, keys=keys)
    limits = httpx.Timeout(timeout, read=10 * timeout)
    try:
        # The environment's proxies are not taken: where a bundle goes is said on the command line.
        client = httpx.Client(base_url=url, verify=tls.context(), proxy=proxy, trust_env=False, timeout=limits)
    except (ValueError, httpx.InvalidURL) as error:
        raise UsageError(f"the proxy {proxy!r} cannot be used: {error}") from None
    with client, bundle.open("rb") as stream:
        return _Sending(client, stream, signed, advance or ignore, notice or ignore, pause).run()


class _Sending:
    def __init__(
        self,
        client: httpx.Client,
        stream: IO[bytes],
        signed: SignedTicket,
        advance: Callable[[int], None],
        notice: Callable[[str], None],
        pause: Callable[[float], None],
    ) -> None:
        self._client, self._stream, self._signed, self._pause = client, stream, signed, pause
        self._advance, self._notice = advance, notice
        self._failures = 0
        self._answered = False
        self._offset = 0

    def run(self) -> Sent:
        ticket, first = self._signed.ticket, True
        while True:
            answer = self._attempt(self._offer)
            if answer is None:
                continue
            already = first and answer["state"] == "complete"
            first = False
            while answer is not None and answer["state"] == "partial":
                self._note(answer["offset"])
                answer = self._attempt(self._chunk, answer["offset"], answer["chunk"])
            if answer is not None:
                self._note(ticket.size)
                taken = already and answer["taken_away"]
                return Sent(sha256=ticket.sha256, size=ticket.size, already_there=already, taken_away=taken)

    def _note(self, offset: int) -> None:
        if offset > self._offset:
            self._advance(offset - self._offset)
            self._offset, self._failures = offset, 0

    def _offer(self) -> httpx.Response:
        body = self._signed.model_dump_json()
        return self._client.post("/v1/uploads", content=body, headers={"content-type": "application/json"})

    def _chunk(self, offset: int, most: int) -> httpx.Response:
        ticket = self._signed.ticket
        length = min(most, ticket.size - offset)
        return self._client.put(
            f"/v1/uploads/{ticket.sha256}",
            params={"offset": offset},
            content=self._blocks(offset, length),
            headers={"content-length": str(length), "content-type": "application/octet-stream"},
        )

    def _blocks(self, offset: int, length: int) -> Iterator[bytes]:
        self._stream.seek(offset)
        while length:
            block = self._stream.read(min(BLOCK, length))
            if not block:
                raise DataError("the bundle became shorter while it was being sent; send it again when it is at rest")
            length -= len(block)
            yield block

    def _attempt(self, request: Callable[..., httpx.Response], *arguments: int) -> dict[str, Any] | None:
        """The server's answer; None where it should be asked again, after a pause."""
        try:
            response = request(*arguments)
        except httpx.ProxyError as error:
            raise VeilrayError(f"the proxy does not let the bundle through: {_plain(str(error))}") from None
        except httpx.TransportError as error:
            if not self._answered and _nobody_there(error):
                raise VeilrayError(
                    f"{self._client.base_url} cannot be reached: {_plain(str(error)) or 'nobody listens'}; check the "
                    "address and the port, and whether the receiver runs"
                ) from None
            self._after_break(_plain(str(error)) or type(error).__name__)
            return None
        self._answered = True
        if response.status_code == 200:
            return _checked(response, self._signed.ticket.size)
        said = _error_of(response)
        if response.status_code in _PASSING:
            self._again(said)
            return None
        raise _REFUSALS.get(response.status_code, VeilrayError)(f"the receiver does not take it: {said}")

    def _after_break(self, said: str) -> None:
        if "CERTIFICATE_VERIFY_FAILED" in said:
            raise RefusedError(
                "the server's certificate is not of the given authority, or not for this address; check --ca and --to"
            )
        if "_ALERT_" in said:
            raise RefusedError(f"the server refuses the client's certificate ({said}); check --cert and --key")
        self._again(f"the connection failed: {said}")

    def _again(self, reason: str) -> None:
        if self._failures == len(_PAUSES):
            advice = "send it again later, and it goes on where it is"
            if not self._answered:
                advice = "no answer ever came: check the address, and whether the receiver knows this certificate"
            raise VeilrayError(f"the bundle was not sent ({reason}); {advice}")
        wait = _PAUSES[self._failures]
        self._notice(f"{reason}; trying again in {wait:g} s")
        self._pause(wait)
        self._failures += 1


def _nobody_there(error: BaseException) -> bool:
    """Whether an attempt failed because nobody listens there, or the name is nobody's."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ConnectionRefusedError | socket.gaierror):
        cause = cause.__cause__ or cause.__context__
    return cause is not None


def _checked(response: httpx.Response, size: int) -> dict[str, Any]:
    """An answer whose fields are what they should be."""
    try:
        answer = response.json()
        state, offset, chunk = answer["state"], answer["offset"], answer["chunk"]
    except (ValueError, KeyError, TypeError):
        state = offset = chunk = None
    fits = type(offset) is int and type(chunk) is int and 0 <= offset <= size and 0 < chunk <= 2**30
    if state not in ("partial", "complete") or not fits or (state == "partial" and offset == size):
        raise VeilrayError("the server does not answer as a receiver of Veilray's does; check the address")
    return {"state": state, "offset": offset, "chunk": chunk, "taken_away": answer.get("taken_away") is True}


def _error_of(response: httpx.Response) -> str:
    try:
        said = response.json()["error"]
    except (ValueError, KeyError, TypeError):
        said = ""
    return _plain(said) if isinstance(said, str) and said else f"status {response.status_code}"


def _plain(text: str) -> str:
    """Text from outside, fit for a terminal and a line."""
    return "".join(letter for letter in text if letter.isprintable())[:200]
