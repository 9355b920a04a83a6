"""How much a sender may ask of the node: sockets with deadlines and ceilings.

pynetdicom reads as many bytes as a PDU's header announces, and waits for them for ever. Here a PDU has a deadline, an
object a ceiling and a least pace, and all objects together another ceiling.
"""

from __future__ import annotations

import contextlib
import math
import socket
import sys
import threading
import time
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING

from pynetdicom.transport import AssociationSocket

if TYPE_CHECKING:
    from pynetdicom.association import Association

MAX_PDU = 1 << 20
"""Bytes of a protocol data unit that the node announces and accepts, and of an association request (PS3.8 9.3)."""
OBJECT_SECONDS = 30.0
"""Seconds that any object may take from its first unit on, however small."""
OBJECT_SECONDS_A_MIB = 1.0
"""Seconds that each MiB of an object adds to those: no sender may be slower."""
_BLOCK = 1 << 16
_HEADER_BYTES, _DATA_UNIT = 6, 0x04  # of a P-DATA-TF (PS3.8 9.3.5): type, a reserved byte, length


def wait_for_no_acknowledgement(connection: socket.socket) -> None:
    """Send at once what is written to a connection, and acknowledge at once what comes next.

    DCMTK, and archives made with it, write a unit's header and body apart: the body waits (Nagle's algorithm, RFC 9293
    3.7.4) until the header is acknowledged, which a system puts off for some 40 ms (RFC 9293 3.8.6.3). That is for
    each object twice. Linux alone can be told, and again each time (tcp(7)).
    """
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if sys.platform == "linux":
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)


class Allowance:
    """Bytes that unfinished objects may have: each, and together over all associations."""

    def __init__(self, *, each: int, together: int) -> None:
        self.each = each
        self.together = together
        # Weak, so that an association that died in any way takes its share with it.
        self._sockets: weakref.WeakSet[BoundedSocket] = weakref.WeakSet()
        self._lock = threading.Lock()

    def enter(self, connection: BoundedSocket) -> None:
        """Count the bytes of a connection from now on."""
        with self._lock:
            self._sockets.add(connection)

    def allows(self, connection: BoundedSocket, count: int) -> bool:
        """Whether a connection may read `count` more bytes; they count from now on if so."""
        with self._lock:
            # Commands and the headers of PDUs come on top of the object itself.
            if connection.taken + count > self.each + MAX_PDU:
                return False
            if sum(one.taken for one in self._sockets) + count > self.together:
                return False
            connection.taken += count
            return True


class BoundedSocket(AssociationSocket):
    """The socket of one association, which refuses to read more or longer than allowed.

    `ended` is told of an end that was not the peer's wish: `too_large` and `too_slow` (an object or a unit), `idle` (an
    association), `no_request` (a connection that never asked for one).
    """

    def __init__(
        self,
        association: Association,
        client: socket.socket,
        *,
        allowance: Allowance,
        seconds: float,
        ended: Callable[[Association, str], None],
    ) -> None:
        super().__init__(association, client_socket=client)
        self.taken = 0
        """Bytes read since the last whole object."""
        self._ended: Callable[[Association, str], None] | None = ended
        self._began: float | None = None  # when the first unit of an unfinished object came
        self._allowance = allowance
        self._seconds = seconds
        allowance.enter(self)

    def recv(self, nr_bytes: int) -> bytearray:
        """Read `nr_bytes`; OSError, which closes the connection, where that is too much or takes too long."""
        if self.socket is None:
            raise OSError("the connection is closed")
        if nr_bytes > MAX_PDU or not self._allowance.allows(self, nr_bytes):
            self._tell("too_large")
            raise OSError("too many bytes")
        began = time.monotonic()
        data = self._read(self.socket, nr_bytes, unit_ends=began + self._seconds, object_ends=self._object_ends())
        if self._began is None and nr_bytes == _HEADER_BYTES and data[:1] == bytes([_DATA_UNIT]):
            self._began = began
        self.socket.settimeout(self._seconds)  # sending has a deadline too
        wait_for_no_acknowledgement(self.socket)
        return data

    def _read(self, connection: socket.socket, count: int, *, unit_ends: float, object_ends: float) -> bytearray:
        """`count` bytes, or fewer where the sender closes; TimeoutError at whichever of the two ends comes first."""
        data, place = bytearray(count), 0
        with memoryview(data) as view:
            while place < count:
                left = min(unit_ends, object_ends) - time.monotonic()
                if left <= 0:
                    self._tell("too_slow")
                    raise TimeoutError("the sender is too slow")
                connection.settimeout(left)
                try:
                    came = connection.recv_into(view[place : place + _BLOCK])
                except TimeoutError:
                    continue
                if not came:
                    break
                place += came
        del data[place:]
        return data

    def _object_ends(self) -> float:
        """By when the object under way must be whole; never, where none is."""
        if self._began is None:
            return math.inf
        return self._began + OBJECT_SECONDS + OBJECT_SECONDS_A_MIB * self.taken / (1 << 20)

    def whole(self) -> None:
        """An object came to its end: its bytes and its time count no longer."""
        self.taken, self._began = 0, None

    def close(self) -> None:
        """Close the connection and give back what it held."""
        self.taken = 0
        super().close()

    def note_idle(self) -> None:
        """Its association is about to be ended for being silent."""
        self._tell("no_request" if self.assoc.requestor.primitive is None else "idle")

    def _tell(self, why: str) -> None:
        """Say once why the connection ends, where that is not its peer's wish."""
        if self._ended is not None:
            tell, self._ended = self._ended, None
            tell(self.assoc, why)

    def _shutdown_socket(self) -> None:
        if self.assoc.requestor.primitive is None:
            self._tell("no_request")
        # Where the peer is gone already, shutting down fails; the descriptor is given back all the same.
        if self.socket is not None:
            with contextlib.suppress(OSError):
                self.socket.shutdown(socket.SHUT_RDWR)
            self.socket.close()
        association = self.assoc
        if association.requestor.primitive is None and association.dul.to_user_queue.empty():
            # Its thread waits for a request that will never come. None is what it finds when it has waited long enough.
            association.dul.to_user_queue.put(None)
