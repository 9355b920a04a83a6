"""The DICOM node from end to end: images a second and its memory, with senders and an archive on the same machine.

    python benchmarks/node.py [--images 2000] [--senders 4] [--width 16] [--size 256] [--threads 2] [--save]

A node (`veilray serve`) runs as a process of its own with a U-Net whose weights were drawn at random, which costs what
trained ones cost. Both its peers are dcmtk's: four `storescu` send different 12-bit images of noisy phantoms, written
beforehand, by C-STORE; a `storescp` is the archive that the node delivers to, which answers and keeps nothing. All
share the machine with the node. The rate is the number of images over the time from the first association to the
last delivery. Processor seconds are given for each party: what senders, archive and this script take, the node cannot
have. The memory of the node (resident set of all its processes, from /proc) is taken four times a second; flat means
that the sum of the last quarter's medians is at most 5 % above the second quarter's.
"""

from __future__ import annotations

import argparse
import os
import re
import socket
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
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--senders", type=int, default=4)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--save", action="store_true", help="write results/node.json")
    options = parser.parse_args()
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
        for sender in range(options.senders):
            _write_images(folder / f"sender{sender}", sender, count=_share(options), size=options.size)
        destination = _free_port()
        archive = subprocess.Popen(["storescp", "--ignore", "-aet", "ARCHIVE", str(destination)])
        node: subprocess.Popen[bytes] | None = None
        try:
            config = _write_config(folder, destination, options)
            command = [sys.executable, "-c", "from veilray.cli.main import run; run()", "serve", str(config)]
            node = subprocess.Popen(command, stderr=(folder / "log").open("wb"))
            port, health = _wait_for_ports(folder / "log")
            return _run(options, folder, node.pid, archive.pid, port, health)
        finally:
            for process in (node, archive):
                if process is not None:
                    process.terminate()
                    process.wait(timeout=60)


def _run(
    options: argparse.Namespace, folder: Path, node: int, archive: int, port: int, health: int
) -> dict[str, object]:
    load = os.getloadavg()[0]
    began, delivered, received_by = time.monotonic(), 0, 0.0
    memory: dict[str, list[int]] = {"receiver_and_courier": [], "worker": []}
    before = _spent(node, archive)
    called = ["-aet", "SENDER", "-aec", "VEILRAY", "127.0.0.1", str(port)]
    senders = [
        subprocess.Popen(["storescu", *called, "+sd", str(folder / f"sender{sender}")])
        for sender in range(options.senders)
    ]
    total = _share(options) * options.senders
    while delivered < total:
        time.sleep(0.25)
        page = _page(health)
        delivered = _value(page, r'veilray_delivered_total\{destination="archive"\} (\d+)')
        if not received_by and _value(page, r"veilray_received_total (\d+)") == total:
            received_by = time.monotonic() - began
        memory["receiver_and_courier"].append(_resident(node))
        memory["worker"].append(sum(map(_resident, _children(node))))
        if time.monotonic() - began > 3600:
            raise SystemExit("gave up after an hour")
    seconds = time.monotonic() - began
    if any(sender.wait() for sender in senders):
        raise SystemExit("a sender failed")
    spent = {name: (now - before[name]) / total for name, now in _spent(node, archive).items()}
    quarters = {name: _quarters(samples) for name, samples in memory.items()}
    second, last = (sum(each) for each in zip(*quarters.values(), strict=True))
    return {
        "images": total,
        "size": options.size,
        "width": options.width,
        "threads": options.threads,
        "batch": options.batch,
        "senders": options.senders,
        "peers": subprocess.run(["storescp", "--version"], capture_output=True, text=True).stdout.split("\n")[0],
        "load_average_before": round(load, 1),
        "seconds": round(seconds, 2),
        "seconds_to_receive_all": round(received_by, 2),
        "images_per_second": round(total / seconds, 2),
        "processor_seconds_per_image": round(spent["receiver_and_courier"] + spent["worker"], 4),
        "processor_seconds_per_image_of": {name: round(value, 4) for name, value in spent.items()},
        "mib_second_quarter": round(second, 1),
        "mib_last_quarter": round(last, 1),
        "mib_second_and_last_quarter_of": {name: [round(each, 1) for each in both] for name, both in quarters.items()},
        "mib_most": round(max(map(sum, zip(*memory.values(), strict=True))) / 2**20, 1),
        "flat": last <= FLAT * second,
    }


def _quarters(samples: list[int]) -> tuple[float, float]:
    """Medians of the second and of the last quarter, in MiB."""
    quarter = max(1, len(samples) // 4)
    parts = samples[quarter : 2 * quarter] or samples, samples[-quarter:]
    second, last = (statistics.median(part) / 2**20 for part in parts)
    return second, last


def _share(options: argparse.Namespace) -> int:
    return int(options.images // options.senders)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


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


def _spent(node: int, archive: int) -> dict[str, float]:
    """Processor seconds that each party has had; those of senders count once they have ended."""
    own = os.times()
    return {
        "receiver_and_courier": _processor_seconds(node),
        "worker": sum(map(_processor_seconds, _children(node))),
        "senders": own.children_user + own.children_system,
        "archive": _processor_seconds(archive),
        "benchmark": own.user + own.system,
    }


def _children(pid: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _stat(pid: int) -> list[str]:
    """The fields of proc_pid_stat(5) from the third on."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _processor_seconds(pid: int) -> float:
    user, system = _stat(pid)[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def _resident(pid: int) -> int:
    return int(_stat(pid)[21]) * os.sysconf("SC_PAGE_SIZE")


def _write_images(folder: Path, sender: int, *, count: int, size: int) -> None:
    """Images of one patient, each with noise of its own, as files."""
    from pydicom import Dataset, dcmwrite
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import UID, ExplicitVRLittleEndian

    folder.mkdir()
    clean = chest_phantom(patient=sender, follow_up=0, seed=1, size=size)
    noise = np.random.default_rng(sender)
    for number in range(count):
        values = np.rint(4095 * np.clip(clean + noise.normal(0, STD, clean.shape), 0, 1)).astype(np.uint16)
        image = Dataset()
        image.SOPClassUID = UID("1.2.840.10008.5.1.4.1.1.1")
        image.SOPInstanceUID = UID(f"1.2.826.0.1.3680043.10.1000.5.{sender}.{number}")
        image.StudyInstanceUID, image.SeriesInstanceUID = "1.2.826.0.1.3680043.10.1000.6", f"1.2.3.{sender + 1}"
        image.Modality, image.PatientID, image.PatientName = "CR", f"P{sender}", "Bench^Mark"
        image.Rows, image.Columns, image.SamplesPerPixel = size, size, 1
        image.PhotometricInterpretation, image.PixelRepresentation = "MONOCHROME2", 0
        image.BitsAllocated, image.BitsStored, image.HighBit = 16, 12, 11
        image.add_new("PixelData", "OW", values.tobytes())
        image.file_meta = FileMetaDataset()
        image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dcmwrite(folder / f"{number}.dcm", image, enforce_file_format=True)


if __name__ == "__main__":
    main()
