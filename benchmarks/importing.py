"""How fast `veilray import` reads radiographs, with one worker and with all cores.

    python benchmarks/importing.py [--rounds 3] [--phantoms 24] [--save]

Phantoms of 1024 x 1024 as 8-bit PNG, each in its eight mirrored and turned forms, resized to 256 x 256: the size of
NIH's originals and of the paper's images. The command runs in a process of its own, as a user starts it, and the time
is that of the whole command: two seconds of it or so start Python and the workers, whatever the number of images.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from common import save, table
from veilray.images.phantom import chest_phantom
from veilray.images.radiograph import to_levels
from veilray.images.write import write_png
from veilray.parallel.workers import available_cores

SIDE = 1024


def main() -> None:
    """Time the import, taking turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--phantoms", type=int, default=24)
    parser.add_argument("--save", action="store_true", help="write results/importing.json")
    options = parser.parse_args()

    workers = sorted({1, available_cores()})
    rates: dict[int, list[float]] = {count: [] for count in workers}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images = _write(folder / "png", options.phantoms)
        for number in range(options.rounds):
            for count in workers:
                began = time.perf_counter()
                _import(folder / "png", folder / f"{number}-{count}", workers=count)
                rates[count].append(images / (time.perf_counter() - began))
    medians = {count: statistics.median(values) for count, values in rates.items()}
    print(table(["workers", "images/s"], [[count, f"{rate:.1f}"] for count, rate in medians.items()]))
    if options.save:
        figures = {"images_per_second": medians, "rounds_images_per_second": rates}
        save("importing", {"images": images, "side": SIDE, "rounds": options.rounds, **figures})


def _write(folder: Path, phantoms: int) -> int:
    """Eight images of each phantom; returns how many there are."""
    folder.mkdir()
    for patient in range(phantoms):
        levels = to_levels(chest_phantom(patient=patient, follow_up=0, seed=1, size=SIDE), np.uint8)
        for form in range(8):
            turned = np.rot90(levels[:, ::-1] if form >= 4 else levels, form % 4)
            write_png(folder / f"{patient + 1:08d}_{form:03d}.png", np.ascontiguousarray(turned))
    return 8 * phantoms


def _import(source: Path, out: Path, *, workers: int) -> None:
    words = ["import", str(source), "--out", str(out), "--size", "256", "--workers", str(workers)]
    subprocess.run([sys.executable, "-m", "veilray", *words], check=True, capture_output=True)


if __name__ == "__main__":
    main()
