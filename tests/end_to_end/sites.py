"""Two sites, each a folder of its own and processes of their own, and what must not get from one to the other."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from pydicom import Dataset
from tests.command_line import PROCESS, Finished
from tests.images.clinical_files import cr, dx
from tests.images.dicom_files import save

from veilray.images.phantom import chest_phantom

_SCRIPT = Path(sys.executable).parent / "veilray"
COMMAND = [str(_SCRIPT)] if _SCRIPT.exists() else PROCESS

ROOT = "1.2.826.0.1.3680043.10.4711"
MARK = "Kanarienvogel"
"""In every name of Site One: of patients, folders, files, the hospital itself."""
SHAPE = (112, 128)
"""Large enough that a denoised image resembles its original beyond doubt, whatever noise was drawn."""
BITS = 12


def clinical_image(ward: int, patient: int, visit: int) -> Dataset:
    """A CR or DX image of a patient who does not exist, with `MARK` wherever a modality or a clerk writes."""
    phantom = chest_phantom(patient=10 * ward + patient, follow_up=visit, seed=5, size=SHAPE[1])[: SHAPE[0]]
    # What a detector adds: no two acquisitions have a row in common.
    grain = np.random.default_rng([ward, patient, visit]).normal(0.0, 0.01, SHAPE)
    values = np.rint((2**BITS - 1) * np.clip(phantom + grain, 0, 1)).astype(np.uint16)
    kind: Callable[..., Dataset] = dx if patient % 2 else cr
    elements = {"PhotometricInterpretation": "MONOCHROME1"} if patient % 4 == 3 else {}
    return kind(
        values,
        bits=BITS,
        PatientName=f"{MARK}^Number{patient}",
        PatientID=f"{MARK}-{ward}-{patient:03d}",
        AccessionNumber=f"{MARK[:8]}{ward}{patient}{visit}",
        InstitutionName=f"{MARK} Hospital",
        ReferringPhysicianName=f"{MARK}^Doctor",
        StudyInstanceUID=f"{ROOT}.1.{ward}.{patient}.{visit}",
        SeriesInstanceUID=f"{ROOT}.2.{ward}.{patient}.{visit}",
        SOPInstanceUID=f"{ROOT}.3.{ward}.{patient}.{visit}",
        **elements,
    )


def write_ward(folder: Path, ward: int, *, patients: int, visits: int = 2) -> dict[str, Dataset]:
    """The files of a ward, and what is in them by SOP Instance UID."""
    images = {}
    for patient in range(patients):
        for visit in range(visits):
            image = clinical_image(ward, patient, visit)
            path = folder / f"{MARK}-{patient}" / f"{MARK.lower()}_film{visit}.dcm"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(save(image))
            images[str(image.SOPInstanceUID)] = image
    return images


@dataclass
class Site:
    """A site: its folder, its commands, and all that they said."""

    name: str
    home: Path
    said: list[str] = field(default_factory=list)

    def run(self, *words: object) -> Finished:
        """A command of Veilray in this site's folder, as a process that knows no other folder."""
        process = subprocess.run(
            [*COMMAND, *(str(word) for word in words)],
            cwd=self.home,
            env=self._environment(),
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=240,
        )
        self.said.append(process.stdout + process.stderr)
        return Finished(process.returncode, process.stdout, process.stderr)

    def done(self, *words: object) -> str:
        """A command that must succeed; its standard output."""
        result = self.run(*words)
        assert result.status == 0, f"{words}: {result.err}"
        return result.out

    def fingerprint(self) -> str:
        """As this site reads it out by telephone."""
        found = re.search(r"^fingerprint (.*)$", self.done("keys", "show", "keys"), re.MULTILINE)
        assert found
        return found[1]

    @contextmanager
    def receiving(self) -> Iterator[str]:
        """`veilray receive` while the block runs; its address."""
        log = self.home / "receive.out"
        with log.open("wb") as stream:
            process = subprocess.Popen(
                [*COMMAND, "receive", "receive.toml"],
                cwd=self.home,
                env=self._environment(),
                stdout=stream,
                stderr=subprocess.STDOUT,
            )
        try:
            yield _address(log, process)
        finally:
            process.terminate()
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _environment(self) -> dict[str, str]:
        (self.home / "tmp").mkdir(exist_ok=True)
        own = {"HOME": str(self.home), "TMPDIR": str(self.home / "tmp"), "OMP_NUM_THREADS": "1"}
        kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "LANG") if name in os.environ}
        return {**kept, **own, "PYTHONUNBUFFERED": "1"}


def _address(log: Path, process: subprocess.Popen[bytes]) -> str:
    until = time.monotonic() + 120
    while time.monotonic() < until:
        text = log.read_text()
        if found := re.search(r"receiving at (https://\S+)", text):
            return found[1]
        assert process.poll() is None, text
        time.sleep(0.05)
    raise AssertionError("the server did not start")


@dataclass(frozen=True)
class Sites:
    """Both sites, with keys and pinned cards, each with a server that takes bundles from the other."""

    one: Site
    two: Site
    addresses: dict[str, str]

    def deliver(self, sender: Site, folder: str, name: str) -> Path:
        """Seal a folder of the sender and send it; the bundle as it lies at the other site."""
        receiver = self.two if sender is self.one else self.one
        sender.done("seal", folder, "--out", f"{name}.veil", "--keys", "keys", "--to", receiver.name)
        tls = f"tls-of-{receiver.name}"
        identity = ["--ca", f"{tls}/ca.pem", "--cert", f"{tls}/client.pem", "--key", f"{tls}/client.key"]
        sent = sender.done("send", f"{name}.veil", "--to", self.addresses[receiver.name], "--keys", "keys", *identity)
        digest = sent.split()[-1]
        return receiver.home / "incoming" / sender.name / f"{digest}.veil"


@contextmanager
def two_sites(folder: Path) -> Iterator[Sites]:
    """Make keys, exchange cards and certificates as the guide says, and start both servers."""
    # The name of a folder of Site One is its own affair too.
    one, two = Site("hospital", folder / f"one-{MARK}"), Site("centre", folder / "two")
    for site, role in ((one, "site-one"), (two, "site-two")):
        site.home.mkdir()
        site.done("keygen", "--out", "keys", "--name", site.name, "--role", role)
        site.done("keys", "card", "keys", "--out", f"{site.name}.json")
        site.done("receive", "--make-test-ca", "tls")
    for site, other in ((one, two), (two, one)):
        _carry(other.home / f"{other.name}.json", site.home)
        for file in ("ca.pem", "client.pem", "client.key"):
            _carry(other.home / "tls" / file, site.home / f"tls-of-{other.name}")
        site.done("keys", "pin", "keys", f"{other.name}.json", "--fingerprint", other.fingerprint())
        (site.home / "receive.toml").write_text(
            'spool = "incoming"\nport = 0\nauthority = "tls/ca.pem"\ncertificate = "tls/server.pem"\n'
            f'key = "tls/server.key"\nkeep_free_gb = 0\n\n[[senders]]\ncard = "{other.name}.json"\n'
            'certificates = ["tls/client.pem"]\n'
        )
    with ExitStack() as stack:
        addresses = {site.name: stack.enter_context(site.receiving()) for site in (one, two)}
        yield Sites(one, two, addresses)


def _carry(file: Path, folder: Path) -> None:
    folder.mkdir(mode=0o700, exist_ok=True)
    target = folder / file.name
    target.write_bytes(file.read_bytes())
    target.chmod(0o600)


def names_and_numbers(cohort: Path) -> dict[str, bytes]:
    """What of Site One's cohort must stay there in every mode: marks, UIDs, digests, in letters and in bytes."""
    found = {"mark": MARK.lower().encode(), "UID root": ROOT.encode(), "path": str(cohort).lower().encode()}
    with (cohort / "index.csv").open(newline="") as stream:
        for row in csv.DictReader(stream):
            found[f"digest of {row['image_id']}"] = row["sha256"].encode()
            found[f"digest of {row['image_id']}, in bytes"] = bytes.fromhex(row["sha256"]).lower()
    record = json.loads((cohort / "cohort.json").read_text())
    for name, digest in _digests(record):
        found[f"{name} of the cohort"] = digest.encode()
    return found


def _digests(value: object, name: str = "digest") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _digests(inner, str(key))
    elif isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value):
        yield name, value


def clean_pixels(cohort: Path) -> dict[str, bytes]:
    """Pieces of the clean images: 12 pixels in a row, from every fourth row of each, as the cohort keeps them."""
    found = {}
    for file in cohort.glob("pixels-*.npy"):
        for image, pixels in enumerate(np.load(file)):
            for row in range(2, len(pixels), 4):
                piece = pixels[row, 20:32]
                if len(np.unique(piece)) > 6:  # not a plain background
                    found[f"pixels of image {image}, row {row}"] = piece.tobytes().lower()
    return found


def leaks(texts: Sequence[tuple[str, bytes]], canaries: dict[str, bytes]) -> list[str]:
    """Which canaries occur, whatever the case of their letters, and in which text."""
    lowered = [(name, text.lower()) for name, text in texts]
    return [f"{what} in {name}" for name, text in lowered for what, canary in canaries.items() if canary in text]


def readable(folder: Path) -> list[tuple[str, bytes]]:
    """Every file under a folder: its path, its bytes, and its pixels where it is a PNG."""
    from PIL import Image

    found = []
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        found.append((name, name.encode()))
        if path.is_file():
            found.append((name, path.read_bytes()))
        if path.suffix == ".png":
            with Image.open(path) as image:
                found.append((f"pixels of {name}", np.asarray(image).tobytes()))
    return found
