"""How fast `veilray import` reads radiographs, with one worker and with all cores.

    python benchmarks/importing.py [--rounds 3] [--images 64] [--save]

Phantoms of 1024 x 1024 as 8-bit PNG, resized to 256 x 256: the size of NIH's originals and of the paper's images. The
time includes starting the workers.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from common import save, table
from veilray.cohort.build import import_radiographs
from veilray.images.phantom import write_phantoms
from veilray.parallel.workers import available_cores


def main() -> None:
    """Time the import, taking turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--save", action="store_true", help="write results/importing.json")
    options = parser.parse_args()

    workers = sorted({1, available_cores()})
    rates: dict[int, list[float]] = {count: [] for count in workers}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_phantoms(folder / "png", patients=options.images, follow_ups=1, seed=1, size=1024)
        for number in range(options.rounds):
            for count in workers:
                began = time.perf_counter()
                import_radiographs([folder / "png"], folder / f"{number}-{count}", size=256, workers=count)
                rates[count].append(options.images / (time.perf_counter() - began))
    medians = {count: statistics.median(values) for count, values in rates.items()}
    print(table(["workers", "images/s"], [[count, f"{rate:.1f}"] for count, rate in medians.items()]))
    if options.save:
        save("importing", {"images": options.images, "rounds": options.rounds, "images_per_second": medians})


if __name__ == "__main__":
    main()
