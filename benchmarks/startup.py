"""From the command to the end of the first optimiser step: `torchrun` with two ranks on CPU, and one process.

    python benchmarks/startup.py [--rounds 5] [--save]

The whole of `veilray train` on a small cohort: the launcher's start, imports, the group, the check of the cohort and of
the ranks' agreement, the network, the first batch, the first step. The sides take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import save, table
from veilray.cohort.build import import_radiographs
from veilray.images.phantom import write_phantoms

SIDES = {"one process": [], "torchrun, 2 ranks": ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]}
BEGAN = "VEILRAY_STARTUP_BEGAN"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--save", action="store_true", help="write results/startup.json")
    parser.add_argument("--train", nargs=2, metavar=("COHORT", "OUT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train:
        _train(*options.train)
        return
    seconds: dict[str, list[float]] = {name: [] for name in SIDES}
    with tempfile.TemporaryDirectory() as folder:
        write_phantoms(Path(folder) / "png", patients=16, follow_ups=2, seed=1, size=64)
        import_radiographs([Path(folder) / "png"], Path(folder) / "cohort", size=64, workers=1)
        for number in range(options.rounds):
            for side, launcher in SIDES.items():
                out = Path(folder) / f"{number}-{len(launcher)}"
                seconds[side].append(_until_first_step(launcher, Path(folder) / "cohort", out))
    medians = {side: statistics.median(values) for side, values in seconds.items()}
    print(table(["side", "seconds to the end of the first step"], [[k, f"{v:.1f}"] for k, v in medians.items()]))
    if options.save:
        save("startup", {"rounds": seconds, "median_seconds": medians})


def _until_first_step(launcher: list[str], cohort: Path, out: Path) -> float:
    environment = {**os.environ, BEGAN: repr(time.time()), "OMP_NUM_THREADS": "1" if launcher else "2"}
    if sys.platform == "linux":
        environment["GLOO_SOCKET_IFNAME"] = "lo"
    command = [sys.executable, *launcher, __file__, "--train", str(cohort), str(out)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return next(json.loads(line)["first_step"] for line in done.stdout.splitlines() if line.startswith('{"first_step"'))


def _train(cohort: str, out: str) -> None:
    """`veilray train`, which says when its first step was done."""
    from veilray.cli import training
    from veilray.cli.main import run

    before = training.TerminalWatcher.step

    def step(self: training.TerminalWatcher, *, step: int, images: int, loss: float) -> None:
        if step == 1:
            print(json.dumps({"first_step": time.time() - float(os.environ[BEGAN])}), flush=True)
        before(self, step=step, images=images, loss=loss)

    training.TerminalWatcher.step = step  # type: ignore[method-assign]
    settings = ["model.width=8", "train.epochs=1", "train.batch_size=16", "launch.device=cpu", "launch.precision=fp32"]
    words = [word for setting in settings for word in ("--set", setting)]
    sys.argv = ["veilray", "train", "default", "--data", cohort, "--out", out, "--no-evaluate", *words]
    run()


if __name__ == "__main__":
    main()
