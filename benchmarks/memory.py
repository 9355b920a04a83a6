"""Private memory of a process that is ready to train: a cohort against the released style, and against its own size.

    python benchmarks/memory.py [--rounds 3] [--save]

Two processes of each kind stand ready at the same time, as two ranks do, and have had the same batches. Private memory
is what /proc/self/smaps_rollup calls Private_Clean + Private_Dirty: what would come free if the one process ended.
Released style: clean and noisy float32 arrays of all images in each process. It is measured at 500 and 1,000 images
and carried on along the straight line through them to 15,000, where two processes would take 16 GB. Ours is measured
at 15,000 images and at the 112,120 of the whole data set, on a sparse file. Figures are medians over the rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from common import save, table
from synthetic import SIDE, synthetic_cohort
from veilray.cohort.cohort import Cohort
from veilray.training.config import RunConfig
from veilray.training.data import TrainingImages

RELEASED = (500, 1_000)
OURS = (15_000, 112_120)
RANKS = 2
BATCHES = 16
MB = 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--save", action="store_true", help="write results/memory.json")
    parser.add_argument("--side", choices=["nothing", "released", "veilray"], help=argparse.SUPPRESS)
    parser.add_argument("--data", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        held = _hold(options.side, options.data)
        print("ready", flush=True)
        sys.stdin.readline()
        print(json.dumps({"bytes": _private_bytes(), "held": held is not None}), flush=True)
        sys.stdin.readline()
        return
    with tempfile.TemporaryDirectory() as folder:
        cohorts = {count: synthetic_cohort(Path(folder) / str(count), count, sparse=True) for count in OURS}
        cases = [("nothing", ""), *(("released", str(count)) for count in RELEASED)]
        cases += [("veilray", str(path)) for path in cohorts.values()]
        rounds = [[_measure(*case) for case in cases] for _ in range(options.rounds)]
    nothing, small, large, *sizes = (statistics.median(figures) for figures in zip(*rounds, strict=True))
    ours = dict(zip(OURS, sizes, strict=True))
    slope = (large - small) / (RELEASED[1] - RELEASED[0])
    released = {count: small + slope * (count - RELEASED[0]) for count in OURS}
    rows = [
        [
            f"{count:,}",
            f"{released[count] / MB:,.0f}",
            f"{ours[count] / MB:,.0f}",
            f"1/{released[count] / ours[count]:.0f}",
        ]
        for count in OURS
    ]
    print(table(["images", "released (extrapolated), MB", "veilray, MB", "ratio"], rows))
    print(f"released as measured: {RELEASED[0]}: {small / MB:,.0f} MB, {RELEASED[1]}: {large / MB:,.0f} MB")
    print(f"the libraries alone, with no data: {nothing / MB:,.0f} MB")
    print("The aim is a twentieth of the released style, the same for any number of images.")
    print(f"veilray from {OURS[0]:,} to {OURS[1]:,} images: {(ours[OURS[1]] - ours[OURS[0]]) / MB:+.1f} MB")
    if options.save:
        record = {
            "released_measured": dict(zip(RELEASED, (small, large), strict=True)),
            "released_extrapolated": released,
            "veilray": ours,
            "no_data": nothing,
        }
        save("memory", {"ranks": RANKS, "private_bytes": record})


def _hold(side: str, data: str) -> object:
    """What a process keeps between two steps."""
    if side == "released":
        clean = np.random.default_rng(0).random((int(data), SIDE, SIDE), dtype=np.float32)
        return clean, np.clip(clean + np.float32(0.1), 0, 1)
    if side == "veilray":
        images = TrainingImages(Cohort.open(data), RunConfig())
        for index in range(BATCHES):
            images.training_batch(0, index, torch.device("cpu"))
        return images
    return None


def _measure(side: str, data: str) -> float:
    """Private bytes of a process, the mean over the ranks that stand ready together."""
    command = [sys.executable, __file__, "--side", side, "--data", data]
    ranks = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(RANKS)]
    try:
        lines: list[str] = []
        for step in ("ready", "measured"):
            lines = [rank.stdout.readline() for rank in ranks if rank.stdout]
            if step == "ready":
                _say(ranks)
        return statistics.mean(json.loads(line)["bytes"] for line in lines)
    finally:
        _say(ranks)
        for rank in ranks:
            rank.communicate()


def _say(ranks: list[subprocess.Popen[str]]) -> None:
    for rank in ranks:
        if rank.stdin:
            rank.stdin.write("go on\n")
            rank.stdin.flush()


def _private_bytes() -> int:
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines()
    fields = dict(line.split(":", 1) for line in lines if ":" in line.split()[0])
    return sum(1024 * int(fields[name].split()[0]) for name in ("Private_Clean", "Private_Dirty"))


if __name__ == "__main__":
    main()
