"""The DICOM node from end to end: images a second and its memory, with senders and an archive on the same machine.

    python benchmarks/node.py [--images 2000] [--senders 4] [--width 16] [--size 256] [--threads 2] [--save]

A node (`veilray serve`) runs as a process of its own with a U-Net whose weights were drawn at random, which costs what
trained ones cost. Four processes of their own send different 12-bit images of noisy phantoms by C-STORE; one more is
the archive that the node delivers to. The rate is the number of images over the time from the first association to the
last delivery. The memory of the node (resident set of all its processes, from /proc) is taken four times a second; flat
means that the last quarter's median is at most 5 % above the second quarter's.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import numpy as np
import torch

from common import save, table
from veilray.images.phantom import chest_phantom
from veilray.models.unet import UNet
from veilray.models.weights import save_weights
from veilray.obfuscation.config import NoiseConfig

STD = 0.1
FLAT = 1.05


def main() -> None:
    """Parse, then measure, or be one of the senders or the archive."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--senders", type=int, default=4)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--save", action="store_true", help="write results/node.json")
    parser.add_argument("--part", choices=["sender", "archive"], help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--first", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part == "sender":
        _send(options.port, first=options.first, count=options.images, size=options.size)
    elif options.part == "archive":
        _archive()
    else:
        figures = _measure(options)
        print(table(["figure", "value"], [[name, value] for name, value in figures.items()]))
        if options.save:
            save("node", figures)


def _measure(options: argparse.Namespace) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch.manual_seed(0)
        network = UNet(width=options.width).eval()
        save_weights(folder / "model.safetensors", network, noise=NoiseConfig(mean=0.0, std=(0.05, 0.2)))
        archive = _start(["--part", "archive"], stdout=subprocess.PIPE)
        node: subprocess.Popen[bytes] | None = None
        try:
            assert archive.stdout is not None
            config = _write_config(folder, int(archive.stdout.readline()), options)
            command = [sys.executable, "-c", "from veilray.cli.main import run; run()", "serve", str(config)]
            node = subprocess.Popen(command, stderr=(folder / "log").open("wb"))
            port, health = _wait_for_ports(folder / "log")
            return _run(options, node.pid, port, health)
        finally:
            for process in (node, archive):
                if process is not None:
                    process.terminate()
                    process.wait(timeout=60)


def _run(options: argparse.Namespace, pid: int, port: int, health: int) -> dict[str, object]:
    share = options.images // options.senders
    parts = ["--part", "sender", "--port", str(port), "--images", str(share), "--size", str(options.size)]
    senders = [
        _start([*parts, "--first", str(index * share)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for index in range(options.senders)
    ]
    for sender in senders:  # each has its images ready
        assert sender.stdout is not None
        sender.stdout.readline()
    began, memory, delivered, received_by = time.monotonic(), [], 0, 0.0
    _, before = _usage(pid)
    for sender in senders:
        assert sender.stdin is not None
        sender.stdin.close()
    total = share * options.senders
    while delivered < total:
        time.sleep(0.25)
        page = _page(health)
        delivered = _value(page, r'veilray_delivered_total\{destination="archive"\} (\d+)')
        if not received_by and _value(page, r"veilray_received_total (\d+)") == total:
            received_by = time.monotonic() - began
        resident, spent = _usage(pid)
        memory.append(resident)
        if time.monotonic() - began > 3600:
            raise SystemExit("gave up after an hour")
    seconds = time.monotonic() - began
    for sender in senders:
        sender.wait()
    quarter = max(1, len(memory) // 4)
    second, last = (statistics.median(part) for part in (memory[quarter : 2 * quarter] or memory, memory[-quarter:]))
    return {
        "images": total,
        "size": options.size,
        "width": options.width,
        "threads": options.threads,
        "batch": options.batch,
        "senders": options.senders,
        "seconds": round(seconds, 2),
        "seconds_to_receive_all": round(received_by, 2),
        "images_per_second": round(total / seconds, 2),
        "processor_seconds_per_image": round((spent - before) / total, 4),
        "mib_second_quarter": round(second / 2**20, 1),
        "mib_last_quarter": round(last / 2**20, 1),
        "mib_most": round(max(memory) / 2**20, 1),
        "flat": last <= FLAT * second,
    }


def _start(arguments: list[str], **options: int) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, __file__, *arguments], env=environment, **options)


def _write_config(folder: Path, port: int, options: argparse.Namespace) -> Path:
    path = folder / "node.toml"
    path.write_text(
        f"""
[node]
ae_title = "VEILRAY"
calling = ["SENDER"]
state = "state"
port = 0
min_free_mib = 0
[model]
path = "model.safetensors"
device = "cpu"
threads = {options.threads}
batch = {options.batch}
[[destinations]]
kind = "dicom"
name = "archive"
host = "127.0.0.1"
port = {port}
ae_title = "ARCHIVE"
[http]
port = 0
"""
    )
    return path


def _wait_for_ports(log: Path) -> tuple[int, int]:
    for _ in range(1200):
        text = log.read_text()
        listening, health = (re.search(rf"{word} on \S+ port (\d+)", text) for word in ("listening", "health"))
        if listening and health:
            return int(listening[1]), int(health[1])
        time.sleep(0.1)
    raise SystemExit(f"the node did not start:\n{log.read_text()}")


def _page(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
        return str(answer.read().decode())


def _value(page: str, pattern: str) -> int:
    found = re.search(pattern, page)
    return int(found[1]) if found else 0


def _usage(pid: int) -> tuple[int, float]:
    """Bytes of the resident sets of a process and its children, and the processor seconds they have had."""
    resident, ticks = 0, 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(folder.name) == pid or int(fields[1]) == pid:
            resident += int(fields[21])
            ticks += int(fields[11]) + int(fields[12])
    return resident * os.sysconf("SC_PAGE_SIZE"), ticks / os.sysconf("SC_CLK_TCK")


def _send(port: int, *, first: int, count: int, size: int) -> None:
    """Build images, say so, wait for the word, and send them over one association."""
    from pydicom import Dataset
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian
    from pynetdicom import AE

    clean = chest_phantom(patient=first, follow_up=0, seed=1, size=size)
    noise = np.random.default_rng(first)
    entity = AE(ae_title="SENDER")
    entity.add_requested_context("1.2.840.10008.5.1.4.1.1.1", ExplicitVRLittleEndian)
    print("ready", flush=True)
    sys.stdin.read()
    association = entity.associate("127.0.0.1", port, ae_title="VEILRAY")
    for index in range(first, first + count):
        values = np.rint(4095 * np.clip(clean + noise.normal(0, STD, clean.shape), 0, 1)).astype(np.uint16)
        image = Dataset()
        image.SOPClassUID, image.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1", f"1.2.826.0.1.3680043.10.1000.5.{index}"
        image.StudyInstanceUID, image.SeriesInstanceUID = "1.2.826.0.1.3680043.10.1000.6", f"1.2.3.{first + 1}"
        image.Modality, image.PatientID, image.PatientName = "CR", f"P{index}", "Bench^Mark"
        image.Rows, image.Columns, image.SamplesPerPixel = size, size, 1
        image.PhotometricInterpretation, image.PixelRepresentation = "MONOCHROME2", 0
        image.BitsAllocated, image.BitsStored, image.HighBit = 16, 12, 11
        image.add_new("PixelData", "OW", values.tobytes())
        image.file_meta = FileMetaDataset()
        image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        status = association.send_c_store(image).get("Status")
        if status != 0:
            raise SystemExit(f"image {index}: status {status}")
    association.release()


def _archive() -> None:
    """Take everything and keep nothing; the port goes to standard output."""
    from pydicom.uid import ExplicitVRLittleEndian
    from pynetdicom import AE, evt

    entity = AE(ae_title="ARCHIVE")
    for sop_class in ("1.2.840.10008.5.1.4.1.1.1", "1.2.840.10008.5.1.4.1.1.1.1"):
        entity.add_supported_context(sop_class, ExplicitVRLittleEndian)
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, lambda event: 0)])
    assert server is not None
    print(server.socket.getsockname()[1], flush=True)
    while True:
        time.sleep(60)


if __name__ == "__main__":
    main()
