"""What validation spends on metrics beyond its forward passes, as a share of a training's time.

    python benchmarks/validation.py [--rounds 3] [--images 144] [--save]

An epoch of `veilray train`'s loop on one process, fp32, with the paper's proportions: half of the images train, a third
is validated on, 256 x 256 pixels, batch 4. The seconds are those that a run's `metrics.jsonl` holds. Pixels are noise,
which costs what radiographs cost. The smaller the network, the larger the share, so a small one is measured too. The
share of one process's own time hangs little on what else the machine does; the record says how busy it was.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch

from common import save, table
from synthetic import synthetic_cohort
from veilray.cli.watcher import Silence
from veilray.cohort.open import open_data
from veilray.training.config import load_config
from veilray.training.data import TrainingImages
from veilray.training.loop import train
from veilray.training.run import RunFolder

WIDTHS = (16, 8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--images", type=int, default=144, help="in the cohort; a sixth of them is neither trained nor validated on"
    )
    parser.add_argument("--save", action="store_true", help="write results/validation.json")
    options = parser.parse_args()
    cases: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        cohort = synthetic_cohort(Path(folder) / "cohort", options.images, sparse=False)
        for width in WIDTHS:
            rounds = [_epoch(width, cohort, Path(folder) / f"{width}-{one}") for one in range(options.rounds)]
            cases[f"U-Net width {width}"] = _summary(rounds)
    rows = [
        [name, f"{100 * one['share_of_training']:.2f} %", f"{100 * one['share_of_validation_forward']:.1f} %"]
        for name, one in cases.items()
    ]
    print(table(["network", "metrics, of the training's time", "of validation's forward passes"], rows))
    if options.save:
        facts = {"images": options.images, "threads": torch.get_num_threads(), "load": os.getloadavg()[1]}
        save("validation", {**facts, "cases": cases})


def _epoch(width: int, cohort: Path, out: Path) -> dict[str, Any]:
    changes = [f"model.width={width}", "train.batch_size=4", "train.epochs=1", "split.rule=paper"]
    config = load_config("default", [*changes, "launch.device=cpu", "launch.precision=fp32"])
    # Unverified: the pixels' digest in a synthetic cohort is no true one.
    images = TrainingImages(open_data(cohort), config)
    run = RunFolder.create(out, config)
    train(config, images, run, device=torch.device("cpu"), watcher=Silence())
    (record,) = run.epochs()
    counts = {name: len(images.sets[name]) for name in ("train", "validation")}
    return {"seconds": record.seconds, "parts": record.parts, "images": counts}


def _summary(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "rounds": rounds,
        "share_of_training": statistics.median(one["parts"]["metrics"] / one["seconds"] for one in rounds),
        "share_of_validation_forward": statistics.median(
            one["parts"]["metrics"] / one["parts"]["validation"] for one in rounds
        ),
    }


if __name__ == "__main__":
    main()
