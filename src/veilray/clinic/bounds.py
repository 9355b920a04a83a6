"""How much a sender may ask of the node: sockets with deadlines and ceilings, and a bounded number of them.

pynetdicom reads as many bytes as a PDU's header announces, waits for them for ever, and does TLS handshakes in the
thread that accepts connections. Here a PDU has a deadline, an object a ceiling and a least pace, all objects together
another ceiling, and a handshake its own thread. Who says nothing shuts nobody out: of those that have no association
yet, the one that has had its connection longest goes when there are too many.
"""

from __future__ import annotations

import contextlib
import math
import socket
import ssl
import threading
import time
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pynetdicom import AE
from pynetdicom.fsm import InvalidEventError
from pynetdicom.transport import AssociationSocket, RequestHandler, ThreadedAssociationServer

if TYPE_CHECKING:
    from pynetdicom.association import Association
    from pynetdicom.events import EventHandlerType

MAX_PDU = 1 << 20
"""Bytes of a protocol data unit that the node announces and accepts, and of an association request (PS3.8 9.3)."""
OBJECT_SECONDS = 30.0
"""Seconds that any object may take from its first unit on, however small."""
OBJECT_SECONDS_A_MIB = 1.0
"""Seconds that each MiB of an object adds to those: no sender may be slower."""
_BLOCK = 1 << 16
_DATA_UNIT = 0x04  # P-DATA-TF (PS3.8 9.3.5)


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
    """The socket of one association, which refuses to read more or longer than allowed."""

    def __init__(
        self, association: Association, client: socket.socket, *, allowance: Allowance, seconds: float
    ) -> None:
        super().__init__(association, client_socket=client)
        self.taken = 0
        """Bytes read since the last whole object."""
        self.too_large = False
        """Whether the connection ended because an object was too large, or all together."""
        self.too_slow = False
        """Whether the connection ended because an object came too slowly."""
        self._began: float | None = None  # when the first unit of an unfinished object came
        self._allowance = allowance
        self._seconds = seconds
        allowance.enter(self)

    def recv(self, nr_bytes: int) -> bytearray:
        """Read `nr_bytes`; OSError, which closes the connection, where that is too much or takes too long."""
        if self.socket is None:
            raise OSError("the connection is closed")
        if nr_bytes > MAX_PDU or not self._allowance.allows(self, nr_bytes):
            self.too_large = True
            raise OSError("too many bytes")
        now = time.monotonic()
        last = math.inf if self._began is None else self._began + self._object_seconds()
        deadline = min(now + self._seconds, last)
        data, place = bytearray(nr_bytes), 0
        with memoryview(data) as view:
            while place < nr_bytes:
                left = deadline - time.monotonic()
                if left <= 0:
                    self.too_slow = deadline == last
                    raise TimeoutError("the sender is too slow")
                self.socket.settimeout(left)
                try:
                    count = self.socket.recv_into(view[place : place + _BLOCK])
                except TimeoutError:
                    continue
                if not count:
                    break
                place += count
        self.socket.settimeout(self._seconds)  # sending has a deadline too
        del data[place:]
        if self._began is None and nr_bytes == 6 and data[:1] == bytes([_DATA_UNIT]):  # the header of a unit
            self._began = now
        return data

    def _object_seconds(self) -> float:
        return OBJECT_SECONDS + OBJECT_SECONDS_A_MIB * self.taken / (1 << 20)

    def whole(self) -> None:
        """An object came to its end: its bytes and its time count no longer."""
        self.taken, self._began = 0, None

    def close(self) -> None:
        """Close the connection and give back what it held."""
        self.taken = 0
        super().close()

    def _shutdown_socket(self) -> None:
        # Where the peer is gone already, shutting down fails; the descriptor is given back all the same.
        if self.socket is not None:
            with contextlib.suppress(OSError):
                self.socket.shutdown(socket.SHUT_RDWR)
            self.socket.close()
        association = self.assoc
        if association.requestor.primitive is None and association.dul.to_user_queue.empty():
            # Its thread waits for a first word that will never come; as after its patience, it hears of none and ends.
            association.dul.to_user_queue.put(None)


class BoundedHandler(RequestHandler):
    """Makes a bounded association of a connection, in a thread of its own."""

    server: BoundedServer

    def handle(self) -> None:
        """Do the handshake, where there is one, then start the association."""
        self.request.settimeout(self.server.seconds)
        if isinstance(self.request, ssl.SSLSocket):
            try:
                self.request.do_handshake()
            except OSError:  # ssl.SSLError is one
                self.server.refused("handshake", self.client_address)
                with contextlib.suppress(OSError):
                    self.request.close()
                return
        super().handle()

    def _create_association(self) -> Association:
        association = super()._create_association()
        self.server.lobby.serves(self.request, association)
        # A socket announces its connection to the state machine when it is made: the first one's word is taken back.
        association.dul.event_queue.get_nowait()
        association.dul.socket = BoundedSocket(
            association, self.request, allowance=self.server.allowance, seconds=self.server.seconds
        )
        self._end_out_of_turn(association)
        return association

    def _end_out_of_turn(self, association: Association) -> None:
        """Let units that come out of turn end the connection.

        pynetdicom's state machine (PS3.8 9.2) raises where, say, an association is accepted that its requestor has
        spoilt meanwhile, and its thread would die of it.
        """
        machine = association.dul.state_machine
        act = machine.do_action

        def guarded(event: str) -> None:
            try:
                act(event)
            except InvalidEventError:
                self.server.refused("protocol", self.client_address)
                association.is_aborted, association.is_established = True, False
                association._kill = association.dul._kill_thread = True
                if association.dul.socket is not None:
                    association.dul.socket.close()

        machine.do_action = guarded  # type: ignore[method-assign]


class BoundedEntity(AE):
    """An application entity whose limit counts associations that were asked for, not connections that say nothing."""

    @property
    def active_associations(self) -> list[Association]:
        """Associations of this entity whose request has come."""
        return [each for each in super().active_associations if each.requestor.primitive is not None]


class Lobby:
    """Connections that have no association yet, in the order in which they came; so many and no more."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._waiting: dict[socket.socket, Association | None] = {}

    def enter(self, connection: socket.socket) -> bool:
        """Let one in; gives whether the one that was there longest had to go for it."""
        with self._lock:
            self._waiting = {one: it for one, it in self._waiting.items() if _waits(one, it)}
            full = len(self._waiting) >= self._most
            if full:
                oldest = next(iter(self._waiting))
                del self._waiting[oldest]
                with contextlib.suppress(OSError):
                    # Not TLS's own: its thread may be in the handshake, and hears of it as of any end.
                    socket.socket.shutdown(oldest, socket.SHUT_RDWR)
            self._waiting[connection] = None
        return full

    def serves(self, connection: socket.socket, association: Association) -> None:
        """A connection is through its handshake: once this association is established it waits no more."""
        with self._lock:
            if connection in self._waiting:
                self._waiting[connection] = association


def _waits(connection: socket.socket, association: Association | None) -> bool:
    return connection.fileno() >= 0 and (association is None or not association.is_established)


class BoundedServer(ThreadedAssociationServer):
    """Accepts connections, and no more that have no association yet than four times as many as associations."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(
        self,
        entity: AE,
        address: tuple[str, int],
        *,
        ssl_context: ssl.SSLContext | None,
        handlers: list[EventHandlerType],
        allowance: Allowance,
        seconds: float,
        refused: Callable[[str, Any], None],
    ) -> None:
        self.allowance = allowance
        self.seconds = seconds
        self.refused = refused
        self.lobby = Lobby(4 * entity.maximum_associations)
        super().__init__(
            entity,
            address,
            entity.ae_title,
            entity.supported_contexts,
            ssl_context=ssl_context,
            evt_handlers=handlers,
            request_handler=BoundedHandler,
        )
        entity._servers.append(self)  # where the entity looks for its associations, and shutdown for itself

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept a connection; its handshake is left to its own thread."""
        assert self.socket is not None
        client, address = self.socket.accept()
        if self.ssl_context is None:
            return client, address
        wrapped = self.ssl_context.wrap_socket(client, server_side=True, do_handshake_on_connect=False)
        return wrapped, address

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Yes; where there is no room, it is made."""
        if self.lobby.enter(request):
            self.refused("connections", client_address)
        return True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Note that a connection failed; socketserver would print a traceback."""
        self.refused("connection", client_address)
