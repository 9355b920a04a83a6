"""HTTP/1.1 over mutual TLS for uvicorn, with the client's certificate handed on, and no patience with slow headers.

uvicorn tells an application nothing of the certificate that a client has shown. Here every request carries its SHA-256
as `scope["state"]["client_certificate"]`.
"""

from __future__ import annotations

import asyncio
import hashlib
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from veilray.exchange import tls

STATE_KEY = "client_certificate"


def protocol_class(
    *, patience: float, known: Callable[[int], None], on_refusal: Callable[[int, str], None]
) -> type[asyncio.Protocol]:
    """A protocol whose connections end when no whole request header has come for `patience` seconds.

    `known` is told the descriptor of every connection that is through its handshake, `on_refusal` status and reason of
    what never reaches the application: 408 for a header that began and never ended, 400 for what is no HTTP.
    """

    class MutualTlsProtocol(H11Protocol):
        _watch: asyncio.TimerHandle | None = None
        _begun = False
        """Whether anything has come since the last answer."""

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            known(transport.get_extra_info("socket").fileno())
            secured = transport.get_extra_info("ssl_object")
            shown = secured.getpeercert(binary_form=True) if secured is not None else None
            # uvicorn copies this into every request's scope.
            self.app_state = {**self.app_state, STATE_KEY: hashlib.sha256(shown).hexdigest() if shown else ""}
            self._wait()

        def data_received(self, data: bytes) -> None:
            self._begun = True
            super().data_received(data)
            if self._in_request():
                self._stop_waiting()
            elif self._watch is None:
                self._wait()

        def send_400_response(self, msg: str) -> None:
            on_refusal(400, "header")
            super().send_400_response(msg)

        def on_response_complete(self) -> None:
            self._begun = False
            super().on_response_complete()
            self._stop_waiting()
            self._wait()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_waiting()
            super().connection_lost(exc)

        def _in_request(self) -> bool:
            return self.cycle is not None and not self.cycle.response_complete

        def _wait(self) -> None:
            if not self.transport.is_closing():
                self._watch = self.loop.call_later(patience, self._give_up)

        def _stop_waiting(self) -> None:
            if self._watch is not None:
                self._watch.cancel()
                self._watch = None

        def _give_up(self) -> None:
            self._watch = None
            if not self._in_request() and not self.transport.is_closing():
                if self._begun:
                    on_refusal(408, "slow")
                self.transport.abort()

    return MutualTlsProtocol


def watched_context(
    *, certificate: Path, key: Path, authority: Path, on_refusal: Callable[[str], None]
) -> ssl.SSLContext:
    """TLS 1.3 that asks every client for a certificate of `authority`; `on_refusal` hears why a handshake failed.

    Raises RefusedError where others can read the key, UsageError where the files do not fit.
    """
    context = tls.server_context(certificate=certificate, key=key, authority=authority)
    context.sslobject_class = _watched(on_refusal)
    return context


def _watched(on_refusal: Callable[[str], None]) -> type[ssl.SSLObject]:
    class WatchedTls(ssl.SSLObject):
        """asyncio passes over failed handshakes in silence."""

        def do_handshake(self) -> Any:
            try:
                return super().do_handshake()
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                raise
            except ssl.SSLError as error:
                on_refusal(error.reason or "handshake")
                raise

    return WatchedTls
