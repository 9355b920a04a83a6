"""A listening socket that keeps its room for those who prove who they are: silent connections are let go.

A connection costs a descriptor before its TLS handshake has shown who it is. Here only so many may stand in the door:
where one more comes, whoever has stood there longest without a handshake goes, so a crowd that says nothing shuts
nobody out. The handshake itself has a deadline, which asyncio sets (`PatientLoop`).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from typing import Any

BACKLOG = 128
"""Connections that the system holds back, and most that are accepted between two turns of the loop."""


class BoundedListener(socket.socket):
    """Accepts for asyncio; `most` connections may be in their handshake, and three times as many open in all."""

    def __init__(self, family: int, *, most: int, on_crowd: Callable[[], None]) -> None:
        super().__init__(family)
        self._most, self._on_crowd = most, on_crowd
        self._open: dict[int, _Connection] = {}
        self._waiting: dict[int, _Connection] = {}
        self._leaving: set[int] = set()
        self._crowded = False

    def accept(self) -> tuple[socket.socket, Any]:
        """The next connection; BlockingIOError where there is none, ConnectionAbortedError where it has no room."""
        full = len(self._open) >= 3 * self._most
        if full and self._leaving:
            raise BlockingIOError  # they hold their descriptors until the loop turns to them
        accepted, address = super().accept()
        if full:
            self._note_crowd()
            accepted.close()
            raise ConnectionAbortedError("no room")
        connection = _Connection(accepted, self._ended)
        self._open[connection.number] = self._waiting[connection.number] = connection
        if len(self._waiting) > self._most:
            self._note_crowd()
            oldest = self._waiting.pop(next(iter(self._waiting)))
            self._leaving.add(oldest.number)
            with contextlib.suppress(OSError):
                oldest.shutdown(socket.SHUT_RDWR)
        else:
            self._crowded = False
        return connection, address

    def known(self, number: int) -> None:
        """The connection with this descriptor is through its handshake."""
        self._waiting.pop(number, None)

    def _ended(self, number: int) -> None:
        self._open.pop(number, None)
        self._waiting.pop(number, None)
        self._leaving.discard(number)

    def _note_crowd(self) -> None:
        # Once a crowd, not once a connection: whoever floods the door must not fill the log.
        if not self._crowded:
            self._crowded = True
            self._on_crowd()


class _Connection(socket.socket):
    """An accepted connection that says when it is closed."""

    def __init__(self, accepted: socket.socket, ended: Callable[[int], None]) -> None:
        super().__init__(accepted.family, accepted.type, accepted.proto, fileno=accepted.detach())
        self.number = self.fileno()
        self._said = ended

    def close(self) -> None:
        """Close it, and say so before the system can give its number to another."""
        if self.fileno() >= 0:
            self._said(self.number)
        super().close()


class PatientLoop(asyncio.SelectorEventLoop):
    """An event loop whose servers give a TLS handshake `patience` seconds; uvicorn itself leaves it at a minute."""

    def __init__(self, patience: float) -> None:
        super().__init__()
        self._patience = patience

    async def create_server(self, *arguments: Any, **options: Any) -> asyncio.Server:
        """As asyncio's, with the deadline."""
        options.setdefault("ssl_handshake_timeout", self._patience)
        return await super().create_server(*arguments, **options)
