"""`default` against the U-Net of the `paper` preset, trained for all of the epochs that the preset asks for.

    python benchmarks/rival_whole.py --data NIH256 --lpips-backbone FILE [--level 0.2] [--out DIR] [--save]

rivals.py gives each network minutes. Here one has its 50 epochs, which take two cores more than an hour: for one level
of noise, at width 32, since width 64 wants a GPU, on our split, and in bf16 and channels-last where they are faster.
With --out the run stays there, and a stopped training goes on. --save writes results/rival_whole.json and the table of
docs/explanation/comparison.md; --pages writes the table from the record that is there.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from common import RESULTS, save
from equal_compute import make_cohort
from rivals import PAPER, for_level
from side_by_side import LEVELS, MEAN, SHIPPED, compared
from side_by_side_pages import write_rival_whole
from veilray.training.run import RunFolder

_SEED = 1


def main() -> None:
    """Train, measure, and with --save record it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the NIH radiographs at 256 px")
    parser.add_argument("--lpips-backbone", type=Path)
    parser.add_argument("--level", choices=LEVELS, default="0.2", help="standard deviation of the noise")
    parser.add_argument("--out", type=Path, help="keeps the run there, and goes on with what is there already")
    parser.add_argument("--save", action="store_true", help="write the record in results/, and the table")
    parser.add_argument("--pages", action="store_true", help="write the table from the record that is there")
    parser.add_argument("--split", choices=["test", "validation"], default="test")
    options = parser.parse_args()
    if options.pages:
        _write_page()
        return
    if options.data is None:
        parser.error("--data names the radiographs")
    with tempfile.TemporaryDirectory() as scratch:
        _measure(options, options.out or Path(scratch))


def _measure(options: argparse.Namespace, folder: Path) -> None:
    cohort = make_cohort(folder, options.data)
    run = folder / f"{for_level('unet', options.level)}-{_SEED}"
    _train(cohort, run, options.level)
    arms = {"default": [SHIPPED], "unet": [run]}
    found = compared(arms, cohort, options.level, against="default", options=options, folder=folder)
    print(json.dumps(found["differences"]))
    if options.save:
        facts = {"split": options.split, "mean": MEAN, "seeds": [_SEED], "nih": {options.level: found}}
        save("rival_whole", {**facts, "runs": {"unet": [_record(run)]}})
        _write_page()


def _train(cohort: Path, run: Path, level: str) -> None:
    """The whole training, by the command that a user would give; one that was stopped goes on."""
    settings = [f"--set={setting}" for setting in (*PAPER, f"noise.std={level}", f"seed={_SEED}")]
    begin = ["paper", f"--data={cohort}", *settings]
    words = [sys.executable, "-m", "veilray", "train", *begin, f"--out={run}", "--no-evaluate"]
    if run.exists():
        words.append("--resume")
    subprocess.run(words, check=True, env={**os.environ, "THP_MEM_ALLOC_ENABLE": "1"})


def _record(path: Path) -> dict[str, Any]:
    """What the run was: its configuration, its epochs, and which of them had the least loss on validation."""
    run = RunFolder(path)
    epochs = run.epochs()
    best = min(epochs, key=lambda epoch: epoch.validation_loss)
    return {
        "epochs": len(epochs),
        "best_epoch": best.epoch,
        "wall_minutes": epochs[-1].seconds / 60,
        "train_loss": [epoch.train_loss for epoch in epochs],
        "validation_psnr": [epoch.validation_psnr for epoch in epochs],
        "config": run.config().model_dump(mode="json"),
        "last_epoch": asdict(epochs[-1]),
    }


def _write_page() -> None:
    write_rival_whole(json.loads((RESULTS / "rival_whole.json").read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
