"""End to end with programs of others: dcmtk sends and asks, Orthanc keeps what the node delivers by both ways."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pydicom import dcmread
from tests.clinic.nodes import NodeProcess, eventually, image, write_config
from tests.clinic.orthanc import Orthanc, running_orthanc
from tests.images.dicom_files import save


@pytest.fixture
def orthanc(tmp_path: Path) -> Iterator[Orthanc]:
    with running_orthanc(tmp_path) as found:
        yield found


def _run(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in words], capture_output=True, text=True, timeout=120, env={**os.environ, "LC_ALL": "C"}
    )


@pytest.mark.slow
def test_dcmtk_sends_and_orthanc_keeps_one_derived_object_each(
    folder: Path, orthanc: Orthanc, start_node: Callable[[Path], NodeProcess]
) -> None:
    stow = f'[[destinations]]\nkind = "stow"\nname = "web"\nurl = "http://127.0.0.1:{orthanc.http}/dicom-web"'
    config = write_config(folder, port=orthanc.dicom, extra=stow)
    config.write_text(config.read_text().replace('ae_title = "ARCHIVE"', f'ae_title = "{orthanc.title}"'))
    node = start_node(config)
    originals = [image(index) for index in range(3)]
    for index, original in enumerate(originals):
        (folder / f"{index}.dcm").write_bytes(save(original))
    files = [folder / f"{index}.dcm" for index in range(3)]
    address = ["127.0.0.1", node.port]
    assert _run("echoscu", "-aet", "STORESCU", "-aec", "VEILRAY", *address).returncode == 0
    for _ in range(2):  # the second time changes nothing
        sent = _run("storescu", "-aet", "STORESCU", "-aec", "VEILRAY", *address, *files)
        assert sent.returncode == 0, sent.stderr
    assert _run("storescu", "-aet", "NOBODY", "-aec", "VEILRAY", *address, files[0]).returncode != 0
    eventually(lambda: len(orthanc.instances()) == 3, seconds=90)
    done = r'state="done"} 3'
    eventually(lambda: done in _metrics(node), seconds=90)
    assert node.stop() == 0
    _check_instances(orthanc, originals, folder)
    studies = _run(
        *("findscu", "-S", "-aec", orthanc.title, "127.0.0.1", orthanc.dicom),
        *("-k", "QueryRetrieveLevel=SERIES", "-k", "PatientID=P7", "-k", "SeriesDescription"),
        *("-k", f"StudyInstanceUID={originals[0].StudyInstanceUID}", "-k", "SeriesInstanceUID"),
    )
    found = re.findall(r"DENOISED, RESEARCH, NOT FOR DIAGNOSIS", studies.stdout + studies.stderr)
    assert len(found) == 1  # one series, beside which the original's own would stand


def _metrics(node: NodeProcess) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{node.health}/metrics", timeout=10) as answer:
        return str(answer.read().decode())


def _check_instances(orthanc: Orthanc, originals: list, folder: Path) -> None:
    sources = set()
    for name in orthanc.instances():
        path = folder / "back.dcm"
        path.write_bytes(orthanc.get(f"/instances/{name}/file"))
        derived = dcmread(path)
        assert list(derived.ImageType)[:2] == ["DERIVED", "SECONDARY"]
        assert derived.StudyInstanceUID == originals[0].StudyInstanceUID
        assert derived.pixel_array.shape == originals[0].pixel_array.shape
        sources.add(str(derived.SourceImageSequence[0].ReferencedSOPInstanceUID))
        if shutil.which("dciodvfy"):
            said = _run("dciodvfy", path)
            assert not [line for line in (said.stdout + said.stderr).splitlines() if line.startswith("Error")]
    assert sources == {str(original.SOPInstanceUID) for original in originals}
