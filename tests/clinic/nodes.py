"""What the tests of the node share: small images with noise, a model, an archive in this process, a node's process."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydicom import Dataset
from pydicom.uid import UID, ExplicitVRLittleEndian
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.events import EventHandlerType
from tests.command_line import PROCESS
from tests.images.clinical_files import ROOT, cr, dx

from veilray.images.phantom import chest_phantom
from veilray.models.unet import UNet
from veilray.models.weights import save_weights
from veilray.obfuscation.config import NoiseConfig

SIZE = 64
STD = 0.1


def noisy_values(seed: int, *, std: float = STD, size: int = SIZE) -> np.ndarray:
    """A phantom with noise, 12 bits."""
    clean = chest_phantom(patient=seed % 4, follow_up=0, seed=1, size=size)
    noisy = clean + np.random.default_rng(seed).normal(0.0, std, clean.shape)
    return np.rint(4095 * np.clip(noisy, 0, 1)).astype(np.uint16)


def image(index: int, *, std: float = STD, kind: Callable[..., Dataset] = cr) -> Dataset:
    """A CR or DX image of its own, ready to be sent."""
    return kind(noisy_values(index, std=std), bits=12, SOPInstanceUID=f"{ROOT}.77.{index}")


def write_model(path: Path, *, std: float | tuple[float, float] = (0.05, 0.2)) -> Path:
    """Weights of an untrained small network that says on which noise it was trained."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = UNet(width=4, depth=2, residual=True).eval()
    save_weights(path, network, noise=NoiseConfig(mean=0.0, std=std))
    return path


def write_config(
    folder: Path, *, port: int, extra: str = "", node: str = "", waits: tuple[float, float] = (0.2, 0.5)
) -> Path:
    """A node's configuration with one DICOM destination on loopback; `waits`: the first and longest before a try."""
    (folder / "node.toml").write_text(
        f"""
[node]
ae_title = "VEILRAY"
calling = ["MODALITY", "STORESCU"]
state = "state"
port = 0
min_free_mib = 0
timeout_seconds = 10
{node}
[model]
path = "model.safetensors"
device = "cpu"
threads = 1
batch = 4
[[destinations]]
kind = "dicom"
name = "archive"
host = "127.0.0.1"
port = {port}
ae_title = "ARCHIVE"
[retry]
first_seconds = {waits[0]}
most_seconds = {waits[1]}
tries = 3
[http]
port = 0
{extra}
"""
    )
    return folder / "node.toml"


class Archive:
    """A C-STORE SCP that remembers what it took; `answer` gives the status of the next objects."""

    def __init__(self) -> None:
        self.taken: list[Dataset] = []
        self.answer: Callable[[Dataset], int] = lambda dataset: 0x0000
        self.deadly: str | None = None
        """SOP Instance UID of an object at which it aborts the association."""

    @property
    def sources(self) -> list[str]:
        """SOP Instance UIDs of the images that the objects taken were derived from."""
        return [str(each.SourceImageSequence[0].ReferencedSOPInstanceUID) for each in self.taken]

    def store(self, event: evt.Event) -> int:
        dataset = event.dataset
        dataset.file_meta = event.file_meta
        dataset.decode()
        if dataset.SOPInstanceUID == self.deadly:
            event.assoc.abort()
        status = 0xC000 if dataset.SOPInstanceUID == self.deadly else self.answer(dataset)
        if status == 0x0000:
            self.taken.append(dataset)
        return status


@contextmanager
def archive(port: int = 0, *, syntaxes: tuple[UID, ...] = (ExplicitVRLittleEndian,)) -> Iterator[tuple[Archive, int]]:
    """An archive on loopback, while the block runs."""
    found = Archive()
    entity = AE(ae_title="ARCHIVE")
    for sop_class in ("1.2.840.10008.5.1.4.1.1.1", "1.2.840.10008.5.1.4.1.1.1.1"):
        entity.add_supported_context(sop_class, list(syntaxes))
    server = entity.start_server(("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_STORE, found.store)])
    assert server is not None
    try:
        yield found, server.socket.getsockname()[1]
    finally:
        server.shutdown()


@contextmanager
def associated(
    entity: AE, port: int, *, called: str = "VEILRAY", handlers: tuple[EventHandlerType, ...] = (), **options: Any
) -> Iterator[Association]:
    """An association with a node, if it takes one, while the block runs; the connection is closed whatever happens.

    pynetdicom leaves it open where the other side closed it first, be it before there was an association.
    """
    opened: list[socket.socket] = []

    def note(event: evt.Event) -> None:
        opened.append(event.assoc.dul.socket.socket)

    noting = [(evt.EVT_CONN_OPEN, note), *handlers]
    association = entity.associate("127.0.0.1", port, ae_title=called, evt_handlers=noting, **options)
    try:
        yield association
    finally:
        if association.is_established:
            association.release()
        for connection in opened:
            connection.close()


def send_all(
    port: int, images: list[Dataset], *, title: str = "MODALITY", called: str = "VEILRAY", seconds: float = 20.0
) -> list[int | None]:
    """C-STORE images one after the other; the status of each, None where there was no answer in so many seconds."""
    entity = AE(ae_title=title)
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = seconds
    for sop_class in {each.SOPClassUID for each in images}:
        entity.add_requested_context(sop_class, ExplicitVRLittleEndian)
    statuses: list[int | None] = []
    with associated(entity, port, called=called) as association:
        for each in images:
            try:
                statuses.append(association.send_c_store(each).get("Status"))
            except (RuntimeError, ValueError):
                statuses.append(None)
    return statuses


def eventually(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait until a condition holds."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.02)


class NodeProcess:
    """`veilray serve` as a process of its own."""

    def __init__(self, config: Path) -> None:
        self.lines: list[str] = []
        self._rest = b""
        self.process = subprocess.Popen(
            [*PROCESS, "serve", str(config)],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            start_new_session=True,  # so that its worker can be ended with it, whatever state that is in
        )
        try:
            self.health = int(self.wait_for(r"health on \S+ port (\d+)")[1])
            self.port = int(self.wait_for(r"listening on \S+ port (\d+)")[1])
        except BaseException:
            self.end()
            raise

    def wait_for(self, pattern: str, seconds: float = 120.0) -> re.Match[str]:
        """The next or an earlier line of its log that fits."""
        until = time.monotonic() + seconds
        seen = 0
        while time.monotonic() < until:
            for line in self.lines[seen:]:
                if found := re.search(pattern, line):
                    return found
            seen = len(self.lines)
            self._read(0.2)
            assert self.process.poll() is None or seen < len(self.lines), "\n".join(self.lines)
        raise AssertionError(f"no {pattern!r} in:\n" + "\n".join(self.lines))

    def _read(self, seconds: float) -> None:
        assert self.process.stderr is not None
        ready, _, _ = select.select([self.process.stderr], [], [], seconds)
        if ready:
            *whole, self._rest = (self._rest + os.read(self.process.stderr.fileno(), 65536)).split(b"\n")
            self.lines += [line.decode() for line in whole]

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.wait()
        self._close()

    def end(self) -> None:
        """Kill whatever is left of it, workers that were stopped included."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        if self.process.stderr is not None:
            self.process.stderr.close()

    def stop(self) -> int:
        """SIGTERM, as systemd does; its exit status."""
        self.process.terminate()
        status = self.process.wait(timeout=60)
        self._close()
        return status

    def _close(self) -> None:
        assert self.process.stderr is not None
        self.lines += self.process.stderr.read().decode().splitlines()
        self.process.stderr.close()


assert sys.platform != "win32", "the node's tests need POSIX"
__all__ = ["dx"]
