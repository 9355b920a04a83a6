"""Delivery by C-STORE and STOW-RS: refusals, archives that are down, and none delivered twice by the node."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from pydicom.uid import ImplicitVRLittleEndian
from tests.clinic.nodes import archive, image, write_config
from tests.images.dicom_files import save
from tests.ports import free_port

from veilray.clinic.config import load_serve_config
from veilray.clinic.counters import Counters
from veilray.clinic.courier import STRIKES, Courier
from veilray.clinic.destinations import DestinationDown, unprotected
from veilray.clinic.queue import Queue


def _courier(config: Path) -> tuple[Courier, Queue]:
    settings = load_serve_config(config)
    queue = Queue(settings.node.state)
    return Courier(settings.destinations[-1], settings, queue, Counters()), queue


def _fill(queue: Queue, count: int, destination: str = "archive", *, first: int = 0) -> None:
    """Ready objects; plain images serve, since a courier does not look inside."""
    for index in range(first, first + count):
        queue.accept(str(index), b"as received")
    for each in queue.claim(count):
        queue.ready(each, save(image(each.id)), [destination])


def test_what_is_due_is_delivered_once(folder: Path) -> None:
    with archive() as (found, port):
        courier, queue = _courier(write_config(folder, port=port))
        _fill(queue, 3)
        assert courier.deliver() == 3
        assert courier.deliver() == 0
    assert len(found.taken) == 3
    assert courier.up
    assert queue.counts()["done"] == 3


def test_an_archive_that_knows_only_implicit_gets_the_same_pixels(folder: Path) -> None:
    with archive(syntaxes=(ImplicitVRLittleEndian,)) as (found, port):
        courier, queue = _courier(write_config(folder, port=port))
        _fill(queue, 1)
        assert courier.deliver() == 1
    (taken,) = found.taken
    assert taken.file_meta.TransferSyntaxUID == ImplicitVRLittleEndian
    assert taken.PixelData == image(1).PixelData


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # pynetdicom's own, where nobody listens
def test_an_archive_that_is_down_counts_against_no_image(folder: Path) -> None:
    courier, queue = _courier(write_config(folder, port=free_port()))
    _fill(queue, 1)
    for _ in range(5):  # more than the tries of the configuration
        with pytest.raises(DestinationDown, match="no connection"):
            courier.deliver()
    assert len(queue.due("archive", 10)) == 1


@pytest.mark.slow
def test_a_refused_image_does_not_hold_up_the_others_and_ends_as_a_dead_letter(folder: Path) -> None:
    with archive() as (found, port):
        courier, queue = _courier(write_config(folder, port=port))
        _fill(queue, 2)
        bad = image(1).SOPInstanceUID
        found.answer = lambda dataset: 0xA900 if dataset.SOPInstanceUID == bad else 0x0000
        for _ in range(200):
            courier.deliver()
            if list(queue.given_up.letters()):
                break
            threading.Event().wait(0.05)
        (letter,) = queue.given_up.letters()
        assert (letter.state, "A900" in letter.reason) == ("dead letter", True)
        assert len(found.taken) == 1
        found.answer = lambda dataset: 0x0000
        queue.given_up.retry_dead()
        assert courier.deliver() == 1
    assert queue.counts()["done"] == 2


@pytest.mark.slow
def test_a_damaged_file_is_refused_and_not_tried_for_ever(folder: Path) -> None:
    with archive() as (_, port):
        courier, queue = _courier(write_config(folder, port=port))
        _fill(queue, 1)
        (path,) = queue.derived.iterdir()
        path.write_bytes(b"damaged")
        for _ in range(200):
            assert courier.deliver() == 0
            if list(queue.given_up.letters()):
                break
            threading.Event().wait(0.05)
    (letter,) = queue.given_up.letters()
    assert "damaged" in letter.reason


def _at_once(queue: Queue) -> None:
    """Make what waits for another try due now."""
    with queue._database.writing() as database:
        database.execute("UPDATE deliveries SET due = 0")


@pytest.mark.slow
def test_an_image_that_makes_the_archive_abort_lets_the_others_go_and_ends_as_a_dead_letter(folder: Path) -> None:
    with archive() as (found, port):
        courier, queue = _courier(write_config(folder, port=port, waits=(60, 60)))
        _fill(queue, 2)
        found.deadly = image(1).SOPInstanceUID
        for _ in range(STRIKES):
            with pytest.raises(DestinationDown):
                courier.deliver()
        assert found.taken == []
        assert courier.deliver() == 1  # the second goes first; the first is counted, once
        assert [image.attempts for image in queue.due("archive", 10)] == []
        _at_once(queue)
        assert [image.attempts for image in queue.due("archive", 10)] == [1]
        for index in (2, 3):  # three tries are configured
            _fill(queue, 1, first=index)
            _at_once(queue)
            assert courier.deliver() == 1
        (letter,) = queue.given_up.letters()
        assert letter.state == "dead letter"
        assert len(found.taken) == 3


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_an_archive_that_was_down_for_long_counts_against_none_of_several_images(folder: Path) -> None:
    port = free_port()
    courier, queue = _courier(write_config(folder, port=port))
    _fill(queue, 3)
    for _ in range(3 * STRIKES + 2):
        with pytest.raises(DestinationDown):
            courier.deliver()
    assert [image.attempts for image in queue.due("archive", 10)] == [0, 0, 0]
    with archive(port) as (found, _):
        assert courier.deliver() == 3
    assert len(found.taken) == 3


class _Web:
    """A STOW-RS service that keeps what it is sent."""

    def __init__(self) -> None:
        self.status = 200
        self.choke_on: bytes | None = None
        """Content of an object that it answers with 500."""
        self.answer: dict[str, object] = {}
        self.bodies: list[bytes] = []
        self.headers: list[dict[str, str]] = []


@contextmanager
def _web() -> Iterator[tuple[_Web, int]]:
    web = _Web()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            web.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            web.headers.append({**dict(self.headers), "path": self.path})
            body = json.dumps(web.answer).encode()
            chokes = web.choke_on is not None and web.choke_on in web.bodies[-1]
            self.send_response(500 if chokes else web.status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield web, server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_stow_sends_the_file_as_it_is_and_heeds_the_answer(folder: Path) -> None:
    with _web() as (web, port):
        (folder / "token").write_text("Bearer secret\n")
        (folder / "token").chmod(0o600)
        extra = f"""
[[destinations]]
kind = "stow"
name = "web"
url = "http://127.0.0.1:{port}/dicom-web/"
authorization_file = "token"
"""
        courier, queue = _courier(write_config(folder, port=1, extra=extra))
        _fill(queue, 1, "web")
        web.status = 503
        with pytest.raises(DestinationDown, match="503"):
            courier.deliver()
        web.status, web.answer = 200, {"00081198": {"vr": "SQ", "Value": [{}]}}
        assert courier.deliver() == 0
        assert queue.deliveries() == {("web", "due"): 1}
        with queue._database.writing() as database:
            database.execute("UPDATE deliveries SET due = 0")
        (path,) = queue.derived.iterdir()
        content = path.read_bytes()
        web.answer = {}
        assert courier.deliver() == 1
    boundary = web.headers[-1]["Content-Type"].partition("boundary=")[2]
    head, _, rest = web.bodies[-1].partition(b"\r\n\r\n")
    assert head == f"--{boundary}\r\nContent-Type: application/dicom".encode()
    assert rest == content + f"\r\n--{boundary}--\r\n".encode()
    assert web.headers[-1]["path"] == "/dicom-web/studies"
    assert web.headers[-1]["Authorization"] == "Bearer secret"
    assert queue.counts()["done"] == 1


def test_stow_that_answers_500_to_one_image_takes_the_others(folder: Path) -> None:
    with _web() as (web, port):
        extra = f'[[destinations]]\nkind = "stow"\nname = "web"\nurl = "http://127.0.0.1:{port}"'
        courier, queue = _courier(write_config(folder, port=1, extra=extra))
        _fill(queue, 3, "web")
        web.choke_on = str(image(1).SOPInstanceUID).encode()
        assert courier.deliver() == 2
        for _ in range(2):
            _at_once(queue)
            assert courier.deliver() == 0
    (letter,) = queue.given_up.letters()
    assert (letter.state, letter.reason) == ("dead letter", "it answered with 500")
    assert queue.counts()["done"] == 2


def test_stow_goes_where_the_configuration_says_and_by_no_proxy(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with _web() as (_, port):
        extra = f'[[destinations]]\nkind = "stow"\nname = "web"\nurl = "http://127.0.0.1:{port}"'
        courier, queue = _courier(write_config(folder, port=1, extra=extra))
        _fill(queue, 1, "web")
        assert courier.deliver() == 1


def test_stow_with_warnings_has_stored_where_the_answer_lists_it(folder: Path) -> None:
    with _web() as (web, port):
        extra = f'[[destinations]]\nkind = "stow"\nname = "web"\nurl = "http://127.0.0.1:{port}"'
        courier, queue = _courier(write_config(folder, port=1, extra=extra))
        _fill(queue, 2, "web")
        web.status, web.answer = 202, {"00081198": {"vr": "SQ", "Value": [{}]}, "00081199": {"vr": "SQ", "Value": [{}]}}
        assert courier.deliver() == 0
        with queue._database.writing() as database:
            database.execute("UPDATE deliveries SET due = 0")
        web.answer = {}  # which says nothing of it
        assert courier.deliver() == 0
        with queue._database.writing() as database:
            database.execute("UPDATE deliveries SET due = 0")
        web.answer = {"00081199": {"vr": "SQ", "Value": [{"00081196": {"vr": "US", "Value": [0xB000]}}]}}
        assert courier.deliver() == 2
    assert queue.counts()["done"] == 2


@pytest.mark.parametrize(
    ("destination", "said"),
    [
        ('kind = "dicom"\nhost = "10.0.0.7"\nport = 104\nae_title = "A"', "images go to far without TLS"),
        ('kind = "dicom"\nhost = "::1"\nport = 104\nae_title = "A"', ""),
        ('kind = "dicom"\nhost = "10.0.0.7"\nport = 104\nae_title = "A"\ntls = { ca = "ca.pem" }', ""),
        ('kind = "stow"\nurl = "https://pacs.example"', ""),
        ('kind = "stow"\nurl = "http://localhost:8042"', ""),
        (
            'kind = "stow"\nurl = "http://pacs.example"\nauthorization_file = "t"',
            "images go to far without TLS, and its Authorization header",
        ),
    ],
)
def test_what_goes_unprotected_is_said(folder: Path, destination: str, said: str) -> None:
    config = load_serve_config(write_config(folder, port=1, extra=f'[[destinations]]\nname = "far"\n{destination}'))
    assert unprotected(config.destinations[-1]) == said


def test_stow_to_nobody_waits(folder: Path) -> None:
    extra = f'[[destinations]]\nkind = "stow"\nname = "web"\nurl = "http://127.0.0.1:{free_port()}"'
    courier, queue = _courier(write_config(folder, port=1, extra=extra))
    _fill(queue, 1, "web")
    with pytest.raises(DestinationDown, match="no connection"):
        courier.deliver()
    assert len(queue.due("web", 1)) == 1
