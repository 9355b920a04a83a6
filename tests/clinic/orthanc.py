"""Orthanc, as the tests start and ask it; they are skipped where it is not installed."""

from __future__ import annotations

import json
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.clinic.nodes import eventually
from tests.ports import free_port

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
DCMTK = ("storescu", "echoscu", "findscu")


@dataclass(frozen=True)
class Orthanc:
    """A running Orthanc."""

    dicom: int
    http: int
    title: str

    def get(self, path: str) -> bytes:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http}{path}", timeout=20) as answer:
            return bytes(answer.read())

    def post(self, path: str, value: object) -> Any:
        """What its REST interface answers to a value, both as JSON."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.http}{path}", data=json.dumps(value).encode())
        with urllib.request.urlopen(request, timeout=20) as answer:
            return json.loads(answer.read())

    def instances(self) -> list[str]:
        return list(json.loads(self.get("/instances")))


def _program() -> str:
    program = shutil.which("Orthanc") or "/usr/sbin/Orthanc"
    if not Path(program).exists():
        pytest.skip("Orthanc is not installed")
    missing = [name for name in DCMTK if shutil.which(name) is None]
    if missing:
        pytest.skip(f"dcmtk is not installed ({missing[0]} is missing)")
    if not PLUGIN.exists():
        pytest.skip("Orthanc's DICOMweb plugin is not installed")
    return program


@contextmanager
def running_orthanc(folder: Path) -> Iterator[Orthanc]:
    """Orthanc on loopback while the block runs, in a folder of its own, with its DICOMweb plugin."""
    program = _program()
    found = Orthanc(dicom=free_port(), http=free_port(), title="ORTHANC")
    storage = folder / "orthanc"
    storage.mkdir()
    settings = {
        "Name": "test",
        "StorageDirectory": str(storage),
        "IndexDirectory": str(storage),
        "DicomAet": found.title,
        "DicomPort": found.dicom,
        "HttpPort": found.http,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DicomAlwaysAllowEcho": True,
        "DicomAlwaysAllowStore": True,
        "DicomAlwaysAllowFind": True,
        "DicomServerEnabled": True,
        "Plugins": [str(PLUGIN)],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    (storage / "orthanc.json").write_text(json.dumps(settings))
    log = (folder / "orthanc.log").open("wb")
    process = subprocess.Popen(
        [program, str(storage / "orthanc.json")], stdout=log, stderr=subprocess.STDOUT, cwd=storage
    )
    try:
        eventually(lambda: _answers(found, process), seconds=90)
        yield found
    finally:
        process.terminate()
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        log.close()


def _answers(orthanc: Orthanc, process: subprocess.Popen[bytes]) -> bool:
    assert process.poll() is None, "Orthanc ended"
    try:
        return bool(orthanc.get("/system"))
    except OSError:
        return False
