"""Who gets in: a listener with a bounded number of connections, each in a thread of its own from its handshake on.

pynetdicom does TLS handshakes in the thread that accepts connections, and counts connections that say nothing as
associations. Here who says nothing shuts nobody out: of those that have no association yet, the one that has had its
connection longest goes when there are too many.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pynetdicom import AE
from pynetdicom.fsm import InvalidEventError
from pynetdicom.transport import RequestHandler, ThreadedAssociationServer

from veilray.clinic.bounds import Allowance, BoundedSocket

if TYPE_CHECKING:
    from pynetdicom.association import Association
    from pynetdicom.events import EventHandlerType


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
        # Its socket is replaced by one with bounds. Each tells the state machine of the connection when it is made, and
        # the machine must hear of one connection, so the first one's word is taken back.
        association.dul.event_queue.get_nowait()
        connection = BoundedSocket(
            association,
            self.request,
            allowance=self.server.allowance,
            seconds=self.server.seconds,
            ended=self.server.ended,
        )
        association.dul.socket = connection
        self._end_out_of_turn(association)
        self._note_silence(association, connection)
        self.server.lobby.serves(self.request, association)
        return association

    def _note_silence(self, association: Association, connection: BoundedSocket) -> None:
        """Have an association that is ended for its silence told of: pynetdicom keeps that to itself."""
        abort = association._abort_blocking

        def noted(block: bool = True) -> None:
            if association.dul.idle_timer_expired():
                connection.note_idle()
            abort(block)

        association._abort_blocking = noted  # type: ignore[method-assign]

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
        ended: Callable[[Association, str], None],
    ) -> None:
        self.allowance = allowance
        self.seconds = seconds
        self.refused = refused
        self.ended = ended
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
