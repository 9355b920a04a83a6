"""Streams that are no DICOM, or are no more: whatever comes over the network, the node goes on and keeps its word."""

from __future__ import annotations

import logging
import random
import re
import socket
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("pynetdicom")

from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import AE, evt
from pynetdicom.events import Event
from tests.clinic.nodes import associated, eventually, image, send_all

from veilray.clinic.config import NodeConfig
from veilray.clinic.counters import Counters
from veilray.clinic.queue import Queue
from veilray.clinic.receiver import Receiver

SECONDS = 1.0
CASES = 120
IDENTIFYING = ("Doe", "P7", "A-17", "Jane")


@pytest.fixture
def node(tmp_path: Path) -> Iterator[tuple[Receiver, Queue]]:
    """A receiver that waits a second for whoever falls silent, and takes a megabyte."""
    options = {"ae_title": "VEILRAY", "calling": ("MODALITY",), "state": tmp_path / "state", "port": 0}
    bounds = {"min_free_mib": 0, "timeout_seconds": SECONDS, "max_object_mib": 1, "max_associations": 40}
    queue = Queue(tmp_path / "state")
    receiver = Receiver(NodeConfig.model_validate(options | bounds), queue, Counters())
    receiver.start()
    yield receiver, queue
    receiver.stop()
    queue.close()


def _recorded(port: int) -> list[bytes]:
    """The protocol data units by which an image is sent, as they go over the network."""
    units: list[bytes] = []

    def note(event: Event) -> None:
        units.append(bytes(event.data))

    dataset = image(0)
    entity = AE(ae_title="MODALITY")
    entity.add_requested_context(dataset.SOPClassUID, ExplicitVRLittleEndian)
    with associated(entity, port, handlers=((evt.EVT_DATA_SENT, note),)) as association:
        assert association.send_c_store(dataset).Status == 0
    return units


def _mutated(units: list[bytes], chance: random.Random) -> bytes:
    """The stream with a few bytes changed, cut out or put in; or units left out, doubled or in another order."""
    units = list(units)
    match chance.randrange(5):
        case 0:
            del units[chance.randrange(len(units))]
        case 1:
            units.insert(chance.randrange(len(units)), chance.choice(units))
        case 2:
            chance.shuffle(units)
        case 3:
            place = chance.randrange(len(units))
            length = chance.choice((0, 1, 2**16, 2**20 + 1, 2**31, 2**32 - 1))
            units[place] = units[place][:2] + struct.pack(">L", length) + units[place][6:]
        case _:
            pass
    stream = bytearray(b"".join(units))
    for _ in range(chance.choice((0, 1, 3, 20))):
        # Mostly in what opens the association and the command, where meaning is dense.
        place = chance.randrange(min(len(stream), chance.choice((80, 600, len(stream)))))
        match chance.randrange(3):
            case 0:
                stream[place] ^= 1 << chance.randrange(8)
            case 1:
                del stream[place : place + chance.choice((1, 8, 200))]
            case _:
                stream[place:place] = chance.randbytes(chance.choice((1, 8, 200)))
    return bytes(stream)


def _play(port: int, stream: bytes) -> bool:
    """Send a stream; whether the node ended the connection in time."""
    with socket.create_connection(("127.0.0.1", port), timeout=20 * SECONDS) as client:
        try:
            client.sendall(stream)
            while client.recv(65_536):
                pass
        except TimeoutError:
            return False
        except OSError:
            pass
    return True


def _check_it_goes_on(receiver: Receiver, queue: Queue) -> None:
    assert send_all(receiver.port, [image(7)]) == [0]
    eventually(lambda: not [one for one in threading.enumerate() if re.search("Acceptor|run_reactor", one.name)], 30)
    # Nothing but whole objects is kept, each with its line in the queue.
    assert len(list(queue.received.iterdir())) == queue.counts()["waiting"]


@pytest.mark.slow
def test_altered_streams_do_no_harm(node: tuple[Receiver, Queue], caplog: pytest.LogCaptureFixture) -> None:
    receiver, queue = node
    units, chance = _recorded(receiver.port), random.Random(8)
    streams = [_mutated(units, chance) for _ in range(CASES)]
    with caplog.at_level(logging.INFO, "veilray.node"), ThreadPoolExecutor(20) as pool:
        ended = list(pool.map(lambda stream: _play(receiver.port, stream), streams))
    assert all(ended)  # and no thread died: pytest would say so
    _check_it_goes_on(receiver, queue)
    said = "\n".join(record.getMessage() for record in caplog.records)
    assert not [text for text in IDENTIFYING if text in said]


@pytest.mark.slow
@pytest.mark.parametrize(
    "stream",
    [
        b"",
        b"\0" * 5000,
        b"\xff" * 5000,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(508),  # a TLS handshake
        b"SSH-2.0-OpenSSH_9.9\r\n",
        struct.pack(">BBL", 4, 0, 2**20 + 1) + bytes(100),  # P-DATA before any association, larger than announced
        struct.pack(">BBL", 9, 0, 4) + bytes(4),  # no such unit (PS3.8 9.3)
        struct.pack(">BBL", 7, 0, 4) + bytes(4),  # A-ABORT at once
        struct.pack(">BBL", 1, 0, 68) + b"\0\1\0\0" + b"VEILRAY".ljust(16) + b"MODALITY".ljust(16) + bytes(32),
    ],
    ids=["nothing", "zeros", "ones", "TLS", "SSH", "oversized", "unknown", "abort", "no contexts"],
)
def test_what_is_no_association_ends_in_time(node: tuple[Receiver, Queue], stream: bytes) -> None:
    receiver, queue = node
    assert _play(receiver.port, stream)
    assert send_all(receiver.port, [image(7)]) == [0]
    assert queue.counts()["waiting"] == 1
