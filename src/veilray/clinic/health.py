"""Health and counters over HTTP: /health for a watchdog, /metrics in Prometheus's text format (version 0.0.4)."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from veilray.clinic.config import HttpConfig
from veilray.clinic.counters import HELP, Counters
from veilray.clinic.courier import Courier
from veilray.clinic.queue import Queue

_LABELS = {"refused": "reason", "delivered": "destination", "failed": "destination"}
_MAX_CONNECTIONS = 16


class Health:
    """Answers on its own threads; at most 16 connections at once, five seconds each.

    A worker that is silent for `silence` seconds makes the node ill.
    """

    def __init__(
        self, config: HttpConfig, *, queue: Queue, counters: Counters, couriers: Sequence[Courier], silence: float
    ) -> None:
        self._queue, self._counters, self._couriers, self._silence = queue, counters, couriers, silence
        self._server = _Server((config.host, config.port), _handler(self))
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, name="health", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=10)

    def fault(self) -> str:
        """Why the node is ill; empty where it is well. A destination that is down is none: its images wait."""
        silence = self._queue.silence()
        if silence is None or silence > self._silence:
            return "the worker is silent"
        return ""

    def page(self) -> str:
        """All figures as Prometheus reads them."""
        return "\n".join([*self._lines(), ""])

    def _lines(self) -> Iterator[str]:
        values = self._counters.values()
        for name, text in HELP.items():
            yield from (f"# HELP veilray_{name}_total {text}", f"# TYPE veilray_{name}_total counter")
            found = {label: count for (one, label), count in values.items() if one == name}
            if name not in _LABELS:
                yield f"veilray_{name}_total {found.get('', 0)}"
            for label, count in sorted(found.items()) if name in _LABELS else ():
                yield f'veilray_{name}_total{{{_LABELS[name]}="{label}"}} {count}'
        yield from ("# HELP veilray_images Images by state.", "# TYPE veilray_images gauge")
        for state, count in self._queue.counts().items():
            yield f'veilray_images{{state="{state}"}} {count}'
        yield from ("# HELP veilray_deliveries Deliveries by state.", "# TYPE veilray_deliveries gauge")
        for (destination, state), count in sorted(self._queue.deliveries().items()):
            yield f'veilray_deliveries{{destination="{destination}",state="{state}"}} {count}'
        yield from ("# HELP veilray_held_bytes Bytes of image files, by folder.", "# TYPE veilray_held_bytes gauge")
        for folder, size in self._queue.held().items():
            yield f'veilray_held_bytes{{folder="{folder}"}} {size}'
        yield from (
            "# HELP veilray_oldest_seconds Age of the oldest image that is not delivered.",
            "# TYPE veilray_oldest_seconds gauge",
            f"veilray_oldest_seconds {self._queue.backlog()[1]:.1f}",
            "# HELP veilray_healthy Whether the node works.",
            "# TYPE veilray_healthy gauge",
            f"veilray_healthy {int(not self.fault())}",
            "# HELP veilray_destination_up Whether a destination answered the last time.",
            "# TYPE veilray_destination_up gauge",
        )
        for courier in self._couriers:
            if courier.up is not None:
                yield f'veilray_destination_up{{destination="{courier.name}"}} {int(courier.up)}'


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self._room = threading.BoundedSemaphore(_MAX_CONNECTIONS)
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, handler)

    def process_request(self, request: object, client_address: object) -> None:
        if not self._room.acquire(blocking=False):
            self.shutdown_request(request)  # type: ignore[arg-type]
            return
        super().process_request(request, client_address)  # type: ignore[arg-type]

    def process_request_thread(self, request: object, client_address: object) -> None:
        try:
            super().process_request_thread(request, client_address)  # type: ignore[arg-type]
        finally:
            self._room.release()

    def handle_error(self, request: object, client_address: object) -> None:
        """A connection that failed is its client's matter."""


def _handler(health: Health) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = 5

        def do_GET(self) -> None:
            match self.path:
                case "/health":
                    fault = health.fault()
                    self._answer(503 if fault else 200, f"{fault or 'ok'}\n")
                case "/metrics":
                    self._answer(200, health.page())
                case _:
                    self._answer(404, "/health or /metrics\n")

        def log_message(self, *_: object) -> None:
            """Requests are not logged."""

        def _answer(self, status: int, text: str) -> None:
            body = text.encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return Handler
