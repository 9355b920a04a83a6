"""What the node takes and what it refuses, over the network."""

from __future__ import annotations

import contextlib
import logging
import socket
import ssl
import struct
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from pydicom import Dataset
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import AE, timer
from tests.clinic.nodes import associated, eventually, image, send_all
from tests.images.clinical_files import cr, dx

from veilray.clinic import bounds
from veilray.clinic.config import HttpConfig, NodeConfig
from veilray.clinic.counters import Counters
from veilray.clinic.health import Health
from veilray.clinic.queue import Queue
from veilray.clinic.receiver import Receiver
from veilray.errors import RefusedError
from veilray.images.derived import Provenance, derived_object
from veilray.images.dicom_pixels import TRANSFER_SYNTAXES


class _Open:
    """A receiver that listens."""

    def __init__(self, state: Path, **options: object) -> None:
        config = {"ae_title": "VEILRAY", "calling": ("MODALITY",), "state": state, "port": 0, "min_free_mib": 0}
        self.queue, self.counters = Queue(state), Counters()
        self.receiver = Receiver(NodeConfig.model_validate(config | options), self.queue, self.counters)
        self.port = self.receiver.port
        self.receiver.start()

    def count(self, name: str, label: str = "") -> int:
        return self.counters.values().get((name, label), 0)


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[Callable[..., _Open]]:
    """Opens receivers that are closed at the end."""
    opened: list[_Open] = []

    def listen(**options: object) -> _Open:
        opened.append(_Open(tmp_path / f"state{len(opened)}", **options))
        return opened[-1]

    yield listen
    for each in opened:
        each.receiver.stop()
        each.queue.close()


@pytest.mark.slow
def test_images_are_on_the_disk_when_success_is_answered(listening: Callable[..., _Open]) -> None:
    node = listening()
    assert send_all(node.port, [image(0), image(1, kind=dx)]) == [0, 0]
    assert node.queue.counts()["waiting"] == 2
    assert len(list(node.queue.received.iterdir())) == 2
    assert send_all(node.port, [image(0)]) == [0]
    assert (node.count("received"), node.count("repeated")) == (2, 1)
    changed = image(0)
    changed.PatientName = "Another^One"
    assert send_all(node.port, [changed]) == [0x0111]


def test_echo(listening: Callable[..., _Open]) -> None:
    entity = AE(ae_title="MODALITY")
    entity.add_requested_context("1.2.840.10008.1.1")
    with associated(entity, listening().port) as association:
        assert association.send_c_echo().Status == 0


def test_its_own_objects_are_acknowledged_and_dropped(listening: Callable[..., _Open]) -> None:
    from datetime import UTC, datetime

    node, original = listening(), image(0)
    provenance = Provenance(
        veilray="0.1.0", weights="ab" * 32, settings="{}", description="Denoised.", when=datetime.now(UTC)
    )
    pixels = np.zeros(original.pixel_array.shape, np.float32)
    derived = derived_object(original, pixels, provenance=provenance, key=b"k" * 32)
    assert send_all(node.port, [derived]) == [0]
    assert node.count("ignored") == 1
    assert node.queue.counts()["waiting"] == 0


def test_titles_that_are_not_allowed_are_rejected(
    listening: Callable[..., _Open], caplog: pytest.LogCaptureFixture
) -> None:
    node = listening()
    with caplog.at_level(logging.INFO, "veilray.node"):
        assert send_all(node.port, [image(0)], title="STRANGER") == [None]
        assert send_all(node.port, [image(0)], called="OTHER") == [None]
        assert send_all(node.port, [image(0)]) == [0]
    eventually(lambda: node.count("refused", "association") == 2)
    assert node.count("received") == 1
    said = "\n".join(record.getMessage() for record in caplog.records)
    assert "STRANGER" in said
    for secret in ("Doe", "P7", "A-17", str(image(0).SOPInstanceUID), str(image(0).StudyInstanceUID)):
        assert secret not in said


def test_other_classes_are_refused_in_the_negotiation(listening: Callable[..., _Open]) -> None:
    node = listening()
    entity = AE(ae_title="MODALITY")
    refused = (
        "1.2.840.10008.5.1.4.1.1.1.1.1",  # DX For Processing
        "1.2.840.10008.5.1.4.1.1.2",  # CT
        "1.2.840.10008.5.1.4.1.1.7",  # Secondary Capture
        "1.2.840.10008.1.20.1",  # Storage Commitment Push Model
        "1.2.840.10008.5.1.4.1.2.2.1",  # Study Root Query/Retrieve, FIND
    )
    for uid in (*refused, "1.2.840.10008.1.1"):
        entity.add_requested_context(uid)
    with associated(entity, node.port) as association:
        assert {context.abstract_syntax for context in association.rejected_contexts} == set(refused)
    eventually(lambda: node.count("refused", "sop_class") == len(refused))


def test_every_syntax_that_can_be_decoded_is_taken(listening: Callable[..., _Open]) -> None:
    entity = AE(ae_title="MODALITY")
    for syntax in (*TRANSFER_SYNTAXES, "1.2.840.10008.1.2.4.51"):
        entity.add_requested_context("1.2.840.10008.5.1.4.1.1.1", syntax)
    with associated(entity, listening().port) as association:
        accepted = {context.transfer_syntax[0] for context in association.accepted_contexts}
    assert accepted == set(TRANSFER_SYNTAXES)


def test_objects_that_are_not_what_they_say_are_refused(listening: Callable[..., _Open]) -> None:
    node = listening()
    raw = dx(np.ones((20, 20), np.uint16), bits=12, PresentationIntentType="FOR PROCESSING")
    assert send_all(node.port, [raw]) == [0xA900]
    assert node.queue.counts()["waiting"] == 0
    assert node.count("refused", "mismatch") == 1


@pytest.mark.slow
def test_a_full_queue_and_a_full_disk_are_out_of_resources(listening: Callable[..., _Open]) -> None:
    assert send_all(listening(max_queue=1).port, [image(0), image(1)]) == [0, 0xA700]
    assert send_all(listening(min_free_mib=10**9).port, [image(0)]) == [0xA700]


def test_oversized_objects_end_the_connection_and_leave_nothing(listening: Callable[..., _Open]) -> None:
    node = listening(max_object_mib=1)
    large = cr(np.zeros((1500, 1500), np.uint16), bits=12)
    assert send_all(node.port, [large]) == [None]
    eventually(lambda: node.count("refused", "too_large") == 1)
    assert not list(node.queue.received.iterdir())
    assert send_all(node.port, [image(index) for index in range(3)]) == [0, 0, 0]


def test_a_unit_that_claims_gigabytes_is_not_waited_for(listening: Callable[..., _Open]) -> None:
    node = listening()
    with socket.create_connection(("127.0.0.1", node.port), timeout=20) as client:
        client.sendall(struct.pack(">BBL", 1, 0, 2**32 - 1))
        assert client.recv(100) == b""
    with socket.create_connection(("127.0.0.1", node.port), timeout=20) as client:
        client.sendall(b"GET / HTTP/1.1\r\n\r\n")
        client.recv(100)
    assert send_all(node.port, [image(0)]) == [0]


@pytest.mark.slow
def test_a_sender_that_stalls_or_drips_is_cut_off(listening: Callable[..., _Open]) -> None:
    node = listening(timeout_seconds=0.5)

    def drip(seconds: float) -> bool:
        with socket.create_connection(("127.0.0.1", node.port), timeout=20) as client:
            client.sendall(struct.pack(">BBL", 1, 0, 200))
            until = time.monotonic() + seconds
            try:
                while time.monotonic() < until:
                    client.sendall(b"\0")
                    time.sleep(0.1)
            except OSError:
                return True
            return False

    assert drip(15.0)
    eventually(lambda: node.count("refused", "too_slow") == 1)
    with socket.create_connection(("127.0.0.1", node.port), timeout=20) as client:
        assert client.recv(100) == b""  # nothing was ever sent: closed by the node
    eventually(lambda: node.count("refused", "no_request") == 1)


@pytest.mark.slow
def test_every_end_against_the_sender_s_will_is_logged_and_counted(
    listening: Callable[..., _Open], caplog: pytest.LogCaptureFixture
) -> None:
    node = listening(timeout_seconds=2.0)
    entity = AE(ae_title="MODALITY")
    entity.add_requested_context(image(0).SOPClassUID, ExplicitVRLittleEndian)
    with caplog.at_level(logging.INFO, "veilray.node"), contextlib.ExitStack() as stack:
        for said in (b"", b"GET / HTTP/1.1\r\n\r\n", struct.pack(">BBL", 1, 0, 200) + b"\0\1"):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", node.port), timeout=20))
            client.sendall(said)
        _, stalled = (stack.enter_context(associated(entity, node.port)) for _ in range(2))
        stalled.dul.socket.socket.sendall(struct.pack(">BBL", 4, 0, 1000) + b"\0")
        # Whether a unit that stalls or the silence of its association is seen first is a matter of chance.
        eventually(lambda: node.count("refused", "idle") + node.count("refused", "too_slow") == 3)
        eventually(lambda: node.count("refused", "no_request") == 2)
        counted = {key: value for key, value in node.counters.values().items() if key[0] == "refused"}
        assert sum(counted.values()) == 5
        eventually(lambda: sum("closed: " in record.getMessage() for record in caplog.records) == 5)
        assert send_all(node.port, [image(0)]) == [0]


@pytest.mark.slow
def test_the_node_s_own_work_is_not_its_sender_s_silence(
    listening: Callable[..., _Open], monkeypatch: pytest.MonkeyPatch
) -> None:
    node, ahead = listening(timeout_seconds=20.0), [0.0]
    accept = node.queue.accept

    def slowly(uid: str, data: bytes) -> str:
        ahead[0] += 60.0
        return accept(uid, data)

    monkeypatch.setattr(node.queue, "accept", slowly)
    monkeypatch.setattr(timer, "time", SimpleNamespace(time=lambda: time.time() + ahead[0]))
    # The sender here goes by the same clock.
    assert send_all(node.port, [image(index) for index in range(3)], seconds=600.0) == [0, 0, 0]
    assert node.count("refused", "idle") == 0


def _drip(port: int, seconds: float) -> bool:
    """Send a command in data units of one byte each, ten a second; gives whether the node ended the association."""
    entity = AE(ae_title="MODALITY")
    entity.add_requested_context(image(0).SOPClassUID, ExplicitVRLittleEndian)
    with associated(entity, port) as association:
        assert association.is_established
        (context,) = association.accepted_contexts
        connection = association.dul.socket.socket
        # P-DATA-TF with one value: its length, the context, "a command, more follows" (PS3.8 9.3.5, annex E.2).
        unit = struct.pack(">BBLLBB", 4, 0, 7, 3, context.context_id, 0x01) + b"\0"
        until = time.monotonic() + seconds
        with contextlib.suppress(OSError):
            while association.is_established and time.monotonic() < until:
                connection.sendall(unit)
                time.sleep(0.1)
        ended = time.monotonic() < until
        association.abort()
    return ended


@pytest.mark.slow
def test_an_object_that_drips_in_units_of_one_byte_is_cut_off_and_its_place_is_free(
    listening: Callable[..., _Open], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "OBJECT_SECONDS", 1.0)
    node = listening(max_associations=1)
    assert _drip(node.port, 30.0)
    eventually(lambda: node.count("refused", "too_slow") == 1)
    eventually(lambda: send_all(node.port, [image(0)]) == [0])


@pytest.mark.slow
def test_pauses_between_objects_count_for_none(
    listening: Callable[..., _Open], monkeypatch: pytest.MonkeyPatch
) -> None:
    ahead = 0.0
    monkeypatch.setattr(bounds, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + ahead))
    node = listening()
    entity = AE(ae_title="MODALITY")
    for uid in ("1.2.840.10008.1.1", image(0).SOPClassUID):
        entity.add_requested_context(uid, ExplicitVRLittleEndian)
    with associated(entity, node.port) as association:
        for index in range(2):
            assert association.send_c_echo().Status == 0
            ahead += 2 * bounds.OBJECT_SECONDS
            assert association.send_c_store(image(index)).Status == 0
            ahead += 2 * bounds.OBJECT_SECONDS
    assert node.count("refused", "too_slow") == 0


@pytest.mark.slow
@pytest.mark.parametrize("tls", [False, True])
def test_silent_connections_shut_nobody_out(listening: Callable[..., _Open], tmp_path: Path, tls: bool) -> None:
    options: dict[str, object] = {"max_associations": 2, "timeout_seconds": 20.0}
    if tls:
        options["tls"] = _tls(tmp_path)
    node = listening(**options)
    before = threading.active_count()
    with contextlib.ExitStack() as stack:
        there = ("127.0.0.1", node.port)
        silent = [stack.enter_context(socket.create_connection(there, timeout=20)) for _ in range(40)]
        assert (_over_tls(node.port, tmp_path, "client") if tls else send_all(node.port, [image(0)])) == [0]
        # Each connection costs threads, two once an association waits for its first word.
        eventually(lambda: threading.active_count() - before <= 2 * 4 * 2 + 4)
        assert [_ended(client) for client in silent[:30]] == [True] * 30
        assert node.count("refused", "connections") >= 30
    assert (_over_tls(node.port, tmp_path, "client") if tls else send_all(node.port, [image(0)])) == [0]


def _ended(client: socket.socket) -> bool:
    try:
        return client.recv(100) == b""
    except ConnectionResetError:
        return True


@pytest.mark.slow
def test_200_associations_at_once_are_taken_or_refused_and_the_node_goes_on(listening: Callable[..., _Open]) -> None:
    node = listening(max_associations=20)
    outcomes: list[int | None] = []
    start = threading.Barrier(200)

    def one(index: int) -> None:
        dataset = image(0)
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{index}"
        start.wait(60)
        outcomes.extend(send_all(node.port, [dataset]))

    threads = [threading.Thread(target=one, args=(index,)) for index in range(200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    taken = sum(status == 0 for status in outcomes)
    assert len(outcomes) == 200
    assert set(outcomes) <= {0, None}
    assert taken >= 1
    assert node.queue.counts()["waiting"] >= taken  # an answer may be lost, an image may not
    eventually(lambda: send_all(node.port, [image(1)]) == [0])  # the node's threads may lag behind their clients


def _certificates(folder: Path) -> None:
    """An authority, a node's certificate of it, and one that it did not sign."""
    for name, signer in (("ca", None), ("node", "ca"), ("client", "ca"), ("stranger", None)):
        words = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        words += ["-days", "2", "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.pem"]
        if signer:
            words += ["-CA", f"{signer}.pem", "-CAkey", f"{signer}.key", "-addext", "subjectAltName=IP:127.0.0.1"]
            words += ["-addext", "basicConstraints=critical,CA:FALSE"]
        subprocess.run(words, cwd=folder, check=True, capture_output=True, timeout=60)


def _tls(folder: Path) -> dict[str, Path]:
    try:
        _certificates(folder)
    except (FileNotFoundError, subprocess.CalledProcessError):
        pytest.skip("openssl 3 is not installed")
    return {"certificate": folder / "node.pem", "key": folder / "node.key", "ca": folder / "ca.pem"}


@pytest.mark.slow
def test_tls_with_certificates_on_both_sides(listening: Callable[..., _Open], tmp_path: Path) -> None:
    node = listening(tls=_tls(tmp_path))
    assert _over_tls(node.port, tmp_path, "client") == [0]
    assert _over_tls(node.port, tmp_path, "stranger") == [None]
    assert _over_tls(node.port, tmp_path, None) == [None]
    assert send_all(node.port, [image(1)]) == [None]
    assert _over_tls(node.port, tmp_path, "client") == [0]


def test_a_key_that_others_can_read_is_refused(listening: Callable[..., _Open], tmp_path: Path) -> None:
    tls = _tls(tmp_path)
    tls["key"].chmod(0o644)
    with pytest.raises(RefusedError, match="open to other users"):
        listening(tls=tls)


def test_counters_are_to_be_had_over_ipv6(tmp_path: Path) -> None:
    queue = Queue(tmp_path / "state")
    try:
        health = Health(HttpConfig(host="::1", port=0), queue=queue, counters=Counters(), couriers=[], silence=60.0)
    except OSError:
        pytest.skip("this machine has no IPv6")
    health.start()
    with urllib.request.urlopen(f"http://[::1]:{health.port}/metrics", timeout=20) as answer:
        assert b"veilray_healthy 0" in answer.read()
    health.stop()
    queue.close()


def _over_tls(port: int, folder: Path, name: str | None) -> list[int | None]:
    context = ssl.create_default_context(cafile=str(folder / "ca.pem"))
    if name:
        context.load_cert_chain(folder / f"{name}.pem", folder / f"{name}.key")
    entity = AE(ae_title="MODALITY")
    dataset: Dataset = image(0)
    entity.add_requested_context(dataset.SOPClassUID, ExplicitVRLittleEndian)
    entity.acse_timeout = 10
    with associated(entity, port, tls_args=(context, "127.0.0.1")) as association:
        status = association.send_c_store(dataset).get("Status") if association.is_established else None
    return [status]
