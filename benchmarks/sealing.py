"""Sealing and opening a large release: speed, and memory that does not grow with it.

    python benchmarks/sealing.py [--sizes 0.25,1] [--save]

A file of each size, in 10^9 bytes, is sealed and opened by a process for each half: the source is sparse, the bundle
and what comes out are not. Peak memory is the largest resident set of the process, libraries included. With `--sizes
0.25,20` it measures 20 GB and takes 40 GB of disk. The record keeps the machine's load average: beside other work the
memory is the same, the speed is not.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from peak import peak_bytes
from veilray.exchange.keys.folder import KeyFolder
from veilray.exchange.sealing import seal as sealing
from veilray.exchange.sealing.open_ import open_bundle
from veilray.exchange.sealing.sources import Source

NAME = f"{0:032x}.png"
"""A part whose content nobody looks into."""


def main() -> None:
    """Print a line for each size; each half runs in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="0.25,1", help="in 10^9 bytes, separated by commas")
    parser.add_argument("--save", action="store_true", help="write results/sealing.json")
    parser.add_argument("--half", choices=["seal", "open"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.half:
        print(json.dumps(_half(options.half, options.folder)))
        return
    from common import save, table

    figures = {}
    for size in (float(text) for text in options.sizes.split(",")):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            _prepare(folder, int(size * 1e9))
            figures[f"{size:g}"] = {half: _measure(half, folder) for half in ("seal", "open")}
    rows = [
        [size, half, f"{float(size) * 1000 / found['seconds']:,.0f}", f"{found['peak_bytes'] / 1e6:,.0f}"]
        for size, halves in figures.items()
        for half, found in halves.items()
    ]
    print(table(["GB", "half", "MB/s", "peak memory, MB"], rows))
    if options.save:
        save("sealing", {"load_average": round(os.getloadavg()[1], 1), "by_gigabytes": figures})


def _prepare(folder: Path, size: int) -> None:
    sender = KeyFolder.create(folder / "two", name="two", role="site-two")
    receiver = KeyFolder.create(folder / "one", name="one")
    sender.pin(receiver.card)
    receiver.pin(sender.card)
    (folder / "source").mkdir()
    with (folder / "source" / NAME).open("wb") as stream:
        os.truncate(stream.fileno(), size)


def _measure(half: str, folder: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--half", half, "--folder", str(folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def _half(half: str, folder: Path) -> dict[str, float]:
    begun = time.perf_counter()
    if half == "seal":
        keys = KeyFolder.open(folder / "two")
        # A sparse file is no PNG: what may be sealed is not the question here.
        sealing._admit = lambda *_: Source(kind="denoised", folder=folder / "source", names=(NAME,))
        sealing.seal(folder / "source", folder / "a.veil", keys=keys, receivers=[keys.peer("one")])
    else:
        open_bundle(folder / "a.veil", folder / "out", keys=KeyFolder.open(folder / "one"))
    seconds = time.perf_counter() - begun
    return {"seconds": seconds, "peak_bytes": peak_bytes()}


if __name__ == "__main__":
    main()
