"""The receiving server: takes signed uploads from senders it knows, chunk by chunk, and needs no private key for it.

    POST /v1/uploads                  a signed ticket -> how much of it is here already
    PUT  /v1/uploads/SHA256?offset=N  the next chunk  -> how much is safe on the disk now

Every answer is JSON with `state` (partial, complete), `offset` and `taken_away` (whether it was received before and
lies here no longer), or `error`.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import uvicorn
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from veilray.errors import BundleError, UsageError
from veilray.exchange.transfer.config import GB, ReceiveConfig, Sender, read_senders
from veilray.exchange.transfer.listener import BACKLOG, BoundedListener, PatientLoop
from veilray.exchange.transfer.protocol import STATE_KEY, protocol_class, watched_context
from veilray.exchange.transfer.spool import BLOCK, NoRoomError, Spool, Upload
from veilray.exchange.transfer.ticket import MAX_TICKET_BYTES, check_ticket

CHUNK = 64 * BLOCK
"""Most bytes of one chunk."""
_WRITE = 4 * BLOCK
_SHA256 = re.compile(r"[0-9a-f]{64}")
_OFFSET = re.compile(r"0|[1-9][0-9]{0,14}")


def make_app(spool: Spool, senders: list[Sender], *, patience: float) -> FastAPI:
    """The application; `patience` is the time in seconds that a client has for each MiB."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    uploads = _Uploads(spool, senders, patience)
    app.add_exception_handler(HTTPException, uploads.nowhere)
    app.post("/v1/uploads")(uploads.offer)
    app.put("/v1/uploads/{sha256}")(uploads.chunk)
    return app


class _Uploads:
    """What is answered to each request."""

    def __init__(self, spool: Spool, senders: list[Sender], patience: float) -> None:
        self._spool, self._patience = spool, patience
        self._by_certificate = {digest: sender for sender in senders for digest in sender.certificates}

    async def offer(self, request: Request) -> JSONResponse:
        sender = self._known(request)
        if sender is None:
            return self._refuse(403, "certificate", "this certificate is not one of a sender known here", None)
        try:
            ticket = check_ticket(await _small_body(request, self._patience), card=sender.card)
            upload = await run_in_threadpool(self._spool.offer, sender, ticket)
        except BundleError as error:
            return self._refuse(403, error.reason, str(error), sender)
        except NoRoomError as error:
            return self._refuse(507, "room", str(error), sender)
        except (TimeoutError, ClientDisconnect):
            return self._refuse(408, "slow", "the ticket came too slowly", sender)
        if upload is None:
            return _answer("complete", ticket.size, taken_away=self._spool.taken_away(sender, ticket.sha256))
        if not upload.whole:
            return _answer("partial", upload.offset)
        if upload.busy:
            return self._refuse(423, "busy", "the bundle is being checked", sender)
        return await self._conclude(sender, upload)  # a stop of the server came between its last byte and its name

    async def chunk(self, request: Request, sha256: str) -> JSONResponse:
        sender = self._known(request)
        if sender is None:
            return self._refuse(403, "certificate", "this certificate is not one of a sender known here", None)
        if not _SHA256.fullmatch(sha256):
            return self._refuse(404, "name", "there is no such upload", sender)
        if self._spool.received(sender, sha256):
            return _answer("complete", 0)
        upload = self._spool.upload(sender, sha256)
        if upload is None:
            return self._refuse(404, "name", "there is no such upload; offer its ticket first", sender)
        if upload.busy:
            return self._refuse(423, "busy", "another connection is sending this bundle", sender, offset=upload.offset)
        wrong = _wrong_chunk(request, upload)
        if wrong is not None:
            status, error = wrong
            return self._refuse(status, "chunk", error, sender, offset=upload.offset)
        upload.busy = True
        try:
            return await self._take(request, sender, upload)
        finally:
            upload.busy = False

    async def nowhere(self, request: Request, error: Exception) -> JSONResponse:
        # No such path, or not with this method.
        status = error.status_code if isinstance(error, HTTPException) else 500
        return self._refuse(status, "request", "there is nothing here", self._known(request))

    async def _take(self, request: Request, sender: Sender, upload: Upload) -> JSONResponse:
        writing: asyncio.Task[None] | None = None
        try:
            async for block in _blocks(request, self._patience):
                if writing is not None:
                    await writing
                # A block is hashed and written while the next one comes.
                writing = asyncio.create_task(run_in_threadpool(upload.write, block))
        except TimeoutError:
            return self._refuse(408, "slow", "the chunk came too slowly", sender, offset=upload.offset)
        except ClientDisconnect:
            return self._refuse(408, "disconnected", "the connection ended within the chunk", sender)
        finally:
            try:
                if writing is not None:
                    await writing
            finally:
                await run_in_threadpool(upload.commit)  # what was taken before a break is not sent twice
        if not upload.whole:
            return _answer("partial", upload.offset)
        return await self._conclude(sender, upload)

    async def _conclude(self, sender: Sender, upload: Upload) -> JSONResponse:
        upload.busy = True
        try:
            await run_in_threadpool(upload.finish)
        except BundleError as error:
            self._spool.close(sender, upload.ticket.sha256)
            return self._refuse(422, error.reason, str(error), sender)
        finally:
            upload.busy = False
        self._spool.close(sender, upload.ticket.sha256)
        self._spool.log("received", sender=sender.card.name, sha256=upload.ticket.sha256, bytes=upload.ticket.size)
        return _answer("complete", upload.ticket.size)

    def _known(self, request: Request) -> Sender | None:
        # A proxy's header could be forged; what the TLS connection itself has shown cannot.
        return self._by_certificate.get(getattr(request.state, STATE_KEY, ""))

    def _refuse(self, status: int, reason: str, error: str, sender: Sender | None, **facts: int) -> JSONResponse:
        self._spool.log("refused", status=status, reason=reason, sender=sender.card.name if sender else "unknown")
        return JSONResponse({"error": error, **facts}, status_code=status, headers={"connection": "close"})


class AtMost:
    """An ASGI application that takes `most` requests at once; `on_refusal` hears of each one beyond, answered 503."""

    def __init__(self, app: ASGIApp, *, most: int, on_refusal: Callable[[], None]) -> None:
        self._app, self._most, self._on_refusal = app, most, on_refusal
        self._open = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, as ASGI has it."""
        if self._open >= self._most:
            self._on_refusal()
            error = {"error": "the receiver is busy with as many requests as it takes at once"}
            await JSONResponse(error, status_code=503, headers={"connection": "close"})(scope, receive, send)
            return
        self._open += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._open -= 1


def _answer(state: str, offset: int, *, taken_away: bool = False) -> JSONResponse:
    return JSONResponse({"state": state, "offset": offset, "chunk": CHUNK, "taken_away": taken_away})


def _wrong_chunk(request: Request, upload: Upload) -> tuple[int, str] | None:
    """Status and reason where a chunk cannot be the next one of an upload."""
    length, offset = request.headers.get("content-length", ""), request.query_params.get("offset", "")
    if not _OFFSET.fullmatch(length):
        return 411, "a chunk needs a Content-Length"
    if int(length) > CHUNK:
        return 413, f"a chunk has at most {CHUNK} bytes"
    if not _OFFSET.fullmatch(offset) or int(offset) != upload.offset:
        return 409, f"the next chunk begins at {upload.offset}"
    if int(offset) + int(length) > upload.ticket.size or length == "0":
        return 413, "the chunk goes beyond the size that was signed, or is empty"
    return None


async def _small_body(request: Request, patience: float) -> bytes:
    body = bytearray()
    async with asyncio.timeout(patience):
        async for part in request.stream():
            body += part
            if len(body) > MAX_TICKET_BYTES:
                break  # which is no ticket, whatever follows
    return bytes(body)


async def _blocks(request: Request, patience: float) -> AsyncIterator[bytes]:
    """The body in blocks of some MiB. TimeoutError where a client is slower than `patience` seconds a MiB."""
    stream = request.stream()
    block, ended = bytearray(), False
    try:
        while not ended:
            due = len(block) + BLOCK
            async with asyncio.timeout(patience):
                while len(block) < due and not ended:
                    part = await anext(stream, None)
                    block += part or b""
                    ended = part is None
            if len(block) >= _WRITE or ended:
                yield bytes(block)
                block = bytearray()
    except (TimeoutError, ClientDisconnect):
        if block:
            yield bytes(block)
        raise


@dataclass(frozen=True, kw_only=True)
class Receiver:
    """A receiving server that listens and is about to run."""

    server: uvicorn.Server
    listener: socket.socket
    address: str
    """`https://HOST:PORT`."""
    patience: float
    """Seconds for a TLS handshake."""

    def run(self) -> None:
        """Receive until SIGINT or SIGTERM, or until `server.should_exit` is set; what has come by then is safe."""
        with (
            contextlib.suppress(KeyboardInterrupt),
            self.listener,
            asyncio.Runner(loop_factory=lambda: PatientLoop(self.patience)) as runner,
        ):
            runner.run(self.server.serve(sockets=[self.listener]))


def make_receiver(config: ReceiveConfig) -> Receiver:
    """Listen as a configuration says. UsageError where the address is not free or the files do not make a server."""
    senders = read_senders(config)
    spool = Spool(config.spool, senders, keep_free=int(config.keep_free_gb * GB))
    context = watched_context(
        certificate=config.certificate,
        key=config.key,
        authority=config.authority,
        on_refusal=lambda reason: spool.log("refused", reason="tls", detail=reason),
    )
    listener = _listen(config, on_crowd=lambda: spool.log("refused", reason="connections"))
    settings = uvicorn.Config(
        AtMost(
            make_app(spool, senders, patience=config.patience_seconds),
            most=config.max_connections,
            on_refusal=lambda: spool.log("refused", status=503, reason="busy"),
        ),
        http=protocol_class(
            patience=config.patience_seconds,
            known=listener.known,
            on_refusal=lambda status, reason: spool.log("refused", status=status, reason=reason),
        ),
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=max(1, int(min(config.patience_seconds, 30))),
        timeout_graceful_shutdown=10,
        ssl_context_factory=lambda _config, _default: context,
    )
    host = f"[{config.host}]" if ":" in config.host else config.host
    address = f"https://{host}:{listener.getsockname()[1]}"
    return Receiver(
        server=uvicorn.Server(settings), listener=listener, address=address, patience=config.patience_seconds
    )


def _listen(config: ReceiveConfig, *, on_crowd: Callable[[], None]) -> BoundedListener:
    host, port = config.host, config.port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = BoundedListener(family, most=config.max_connections, on_crowd=on_crowd)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise UsageError(f"cannot listen on {host}, port {port}: {(error.strerror or 'error').lower()}") from None
    return listener
