"""Two ranks of one thread against one process of two threads: the same training, the same global batch, gloo.

    python benchmarks/ddp.py [--rounds 5] [--steps 16] [--norms batch group] [--bucket-mb 25] [--quick] [--save]

Each side takes the optimiser steps of `veilray train`, with the images and the noise of each, in processes of its own;
the sides take turns. A ratio above 1 means that the ranks are faster. bf16 at the size of fp32 where the processor
multiplies it, and smaller elsewhere, because emulation takes ten times as long. Both sides keep freed memory, as
`veilray train` does.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from common import alternate, medians, save, table
from gpu_throughput import Step
from ranks import run_ranks
from synthetic import synthetic_cohort
from veilray.cohort.open import open_data
from veilray.models.build import build_model
from veilray.parallel.devices import keep_freed_memory, multiplies_bf16
from veilray.parallel.joining import joined
from veilray.training.config import load_config
from veilray.training.data import TrainingImages
from veilray.training.launch import memory_format, resolved
from veilray.training.setup import Setup
from veilray.training.state import TrainingState
from veilray.training.step import Signals, Stepper
from veilray.training.timing import PartClock

# Of 16 images, as the `paper` preset's, and of 4, in which the exchanges weigh most.
FP32 = {f"fp32, width 16, 256 px, batch {batch}": ("fp32", 16, 256, batch) for batch in (16, 4)}
NATIVE = {f"bf16, width 16, 256 px, batch {batch}": ("bf16", 16, 256, batch) for batch in (16, 4)}
EMULATED = {"bf16, width 8, 128 px, batch 4": ("bf16", 8, 128, 4)}
QUICK = {"fp32, width 4, 32 px, batch 4": ("fp32", 4, 32, 4), "bf16, width 4, 32 px, batch 4": ("bf16", 4, 32, 4)}
CASES = FP32 | NATIVE | EMULATED | QUICK
WARM_UP = 4
IMAGES = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--quick", action="store_true", help="tiny networks, to try the script itself")
    parser.add_argument("--bucket-mb", type=float, default=25.0, help="launch.bucket_mb of the ranks")
    norms = ["batch", "group"]  # the statistics of batch normalisation cross ranks
    parser.add_argument("--norms", choices=norms, nargs="+", default=norms)
    parser.add_argument("--save", action="store_true", help="write results/ddp.json")
    parser.add_argument("--side", choices=["one process", "two ranks", "rank"], help=argparse.SUPPRESS)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--cohort", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side == "two ranks":
        words = ["--side", "rank", "--case", options.case, "--norms", *options.norms, "--cohort", options.cohort]
        words += ["--steps", str(options.steps), "--bucket-mb", str(options.bucket_mb)]
        print(json.dumps(run_ranks(__file__, words, ranks=2)))
        return
    if options.side:
        print(json.dumps(_measured(options)))
        return
    usual = FP32 | (NATIVE if multiplies_bf16(torch.device("cpu")) else EMULATED)
    record = {
        f"{case}, {norm} normalisation": _compare(case, norm, options)
        for case in (QUICK if options.quick else usual)
        for norm in options.norms
    }
    rows = [
        [
            case,
            *(f"{one['ms_per_step']:.1f}" for one in figures["medians"].values()),
            _share(figures["medians"]["two ranks"]),
            f"{figures['ratio']:.2f}x",
        ]
        for case, figures in record.items()
    ]
    print(table(["case", "one process ms/step", "two ranks ms/step", "of it waiting for ranks", "ratio"], rows))
    if options.save:
        save("ddp", {"timed_steps": options.steps, "bucket_mb": options.bucket_mb, "cases": record})


def _share(ranks: dict[str, float]) -> str:
    return f"{100 * ranks['all_reduce_ms'] / ranks['ms_per_step']:.0f} %"


def _compare(case: str, norm: str, options: argparse.Namespace) -> dict[str, Any]:
    """Medians of both sides, and how many times as fast two ranks are."""
    with tempfile.TemporaryDirectory() as folder:
        cohort = synthetic_cohort(Path(folder) / "cohort", IMAGES, sparse=False, side=CASES[case][2])
        words = ["--case", case, "--norms", norm, "--cohort", str(cohort), "--steps", str(options.steps)]
        words += ["--bucket-mb", str(options.bucket_mb)]
        huge_pages = {"THP_MEM_ALLOC_ENABLE": "1"}
        sides = {
            "one process": (["--side", "one process", *words], {"OMP_NUM_THREADS": "2", **huge_pages}),
            "two ranks": (["--side", "two ranks", *words], {"OMP_NUM_THREADS": "1", **huge_pages}),
        }
        measured = alternate(__file__, sides, rounds=options.rounds)
    one, two = (medians(measured[side]) for side in sides)
    ratio = one["ms_per_step"] / two["ms_per_step"]
    return {"rounds": measured, "medians": {"one process": one, "two ranks": two}, "ratio": ratio}


def _measured(options: argparse.Namespace) -> dict[str, float]:
    keep_freed_memory()
    with joined(torch.device("cpu"), timeout=300.0) as group:
        setup = Setup("ddp", group) if group.joined else Setup()
        clock = PartClock(torch.device("cpu"))
        step = _step(options, setup, clock)
        for _ in range(WARM_UP):
            step()
        clock.take()
        seconds = []
        for _ in range(options.steps):
            began = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - began)
        parts = clock.take()
    figures = {f"{part}_ms": 1000 * parts[part] / options.steps for part in parts}
    return {"ms_per_step": 1000 * statistics.median(seconds), **figures, "threads": torch.get_num_threads()}


def _step(options: argparse.Namespace, setup: Setup, clock: PartClock) -> Step:
    """A step of `veilray train`, its images and noise included."""
    precision, width, _, batch = CASES[options.case]
    changes = [f"launch.precision={precision}", f"model.width={width}", f"train.batch_size={batch}"]
    changes.append(f"model.norm={options.norms[0]}")
    device = torch.device("cpu")
    config = resolved(load_config("default", [*changes, f"launch.bucket_mb={options.bucket_mb}"]), device)
    images = TrainingImages(open_data(options.cohort), config)
    torch.manual_seed(config.seed)
    model = setup.prepare(build_model(config.model))
    model.to(memory_format=memory_format(config.launch))
    state = TrainingState(model, config.train, device=device, scale_loss=False)
    stepper = Stepper(state, config, setup, clock)

    def step() -> None:
        epoch, index = divmod(state.counters.step, images.steps_per_epoch())
        parts = images.training_parts(epoch, index, device, setup.group)
        clock.lap("data")
        stepper.take(parts, rate=1e-4, signals=Signals())
        state.counters.step += 1

    return step


if __name__ == "__main__":
    main()
