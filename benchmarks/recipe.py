"""What each part of the training recipe buys: one thing changed at a time, equal compute, same radiographs.

    python benchmarks/recipe.py --data shared/data/nih256 [--minutes 5] [--seeds 1 2 3] [--out DIR] [--save]

The reference is a residual U-Net of width 16 on 128-pixel crops with fresh noise, cosine schedule and averaged weights;
how equal compute is measured says equal_compute.py. All are scored at noise 0.2, also where they were trained on a
range. Differences are paired, image by image, seeds averaged first. The test patients are looked at once, at the end;
`--split validation` is for trying things out.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from common import save, table
from equal_compute import Recipe, Scores, evaluate_all, make_cohort, record, run_script, train_all
from veilray.obfuscation.config import NoiseConfig

REFERENCE = "reference"
COMMON = [
    *("model.name=unet", "model.width=16", "model.residual=true", "noise.std=0.2", "split.rule=cohort"),
    *("launch.device=cpu", "train.batch_size=4", "train.crop=128", "train.flips=true"),
]
CHANGES = {
    REFERENCE: [],
    "fixed noise": ["noise.fresh=false"],
    "constant rate": ["train.schedule=constant"],
    "no averaged weights": ["train.ema_decay=0.0"],
    "image output": ["model.residual=false"],
    "group normalisation": ["model.norm=group"],
    "no flips": ["train.flips=false"],
    "whole images": ["train.crop=0"],
    "width 8": ["model.width=8"],
    "width 32": ["model.width=32"],
    "noise 0.05 to 0.4": ["noise.std=[0.05, 0.4]"],
    "mean squared error": ["train.loss=mse"],
    "U-Net++": ["model.name=unetpp"],
    "NAFNet, width 16": ["model.name=nafnet", "model.depth=4", "train.batch_size=16"],
}
RECIPES = {
    name.replace(" ", "_"): Recipe(
        preset="default", settings=[*COMMON, *changes], environment={"THP_MEM_ALLOC_ENABLE": "1"}
    )
    for name, changes in CHANGES.items()
}
SCORED = ("psnr", "ssim", "lpips")


def main() -> None:
    run_script(__doc__, RECIPES, minutes=5.0, measure=_measure)


def _measure(options: argparse.Namespace, folder: Path) -> None:
    cohort = make_cohort(folder, options.data)
    runs = train_all(__file__, RECIPES, seeds=options.seeds, folder=folder, cohort=cohort, minutes=options.minutes)
    noise = NoiseConfig(mean=0.1, std=0.2)
    scores = evaluate_all(runs, cohort, split=options.split, lpips_backbone=options.lpips_backbone, noise=noise)
    _show(scores)
    if options.save:
        save("recipe", record(runs, scores, reference=REFERENCE, minutes=options.minutes, split=options.split))


def _show(scores: Scores) -> None:
    rows = []
    for name in RECIPES:
        cells = []
        for metric in SCORED:
            found = scores.mean(name, metric) if name == REFERENCE else scores.difference(name, REFERENCE, metric)
            cells.append("-" if found is None else f"{found['mean']:+.4g} [{found['low']:+.4g}, {found['high']:+.4g}]")
        rows.append([name.replace("_", " "), *cells])
    print(table(["changed (difference to the reference)", *SCORED], rows))


if __name__ == "__main__":
    main()
