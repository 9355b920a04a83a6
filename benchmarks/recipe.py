"""What each part of the training recipe buys: one thing changed at a time, equal compute, same radiographs.

    python benchmarks/recipe.py --data NIH256 --lpips-backbone FILE [--minutes 5] [--seeds 1 2 3] [--out DIR] [--save]

The reference is a residual U-Net of width 16 on 128-pixel crops with fresh noise, cosine schedule and averaged weights;
how equal compute is measured says equal_compute.py. All are scored at noise 0.2, also where they were trained on a
range. Differences are paired, image by image, seeds averaged first. Self-ensemble is the reference itself, whose output
is averaged with that of the mirrored image. The test patients are looked at once, at the end; `--split validation` is
for trying things out. With --out what is trained stays there, and a stopped script goes on with the rest. --save writes
results/recipe.json and the table of docs/explanation/recipe.md; --pages writes the table from the record there is.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from common import RESULTS, save, table
from equal_compute import Recipe, Scores, evaluate_all, make_cohort, record, run_script, train_all
from estimates import interval, scores_of
from recipe_pages import write_page
from veilray.evaluation.levels import at_noise
from veilray.inference.denoiser import Denoiser
from veilray.obfuscation.config import NoiseConfig
from veilray.training.data import TrainingImages
from veilray.training.run import RunFolder

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
    "NAFNet, width 16, depth 4": ["model.name=nafnet", "model.depth=4"],
}
RECIPES = {
    name.replace(" ", "_"): Recipe(
        preset="default", settings=[*COMMON, *changes], environment={"THP_MEM_ALLOC_ENABLE": "1"}
    )
    for name, changes in CHANGES.items()
}
SCORED = ("psnr", "ssim", "lpips")


def main() -> None:
    run_script(__doc__, RECIPES, minutes=5.0, measure=_measure, page=_write_page)


def _write_page() -> None:
    write_page(json.loads((RESULTS / "recipe.json").read_text(encoding="utf-8")))


def _measure(options: argparse.Namespace, folder: Path) -> None:
    cohort = make_cohort(folder, options.data)
    runs = train_all(__file__, RECIPES, seeds=options.seeds, folder=folder, cohort=cohort, minutes=options.minutes)
    noise = NoiseConfig(mean=0.1, std=0.2)
    scores = evaluate_all(runs, cohort, split=options.split, lpips_backbone=options.lpips_backbone, noise=noise)
    _show(scores)
    if options.save:
        found = record(runs, scores, reference=REFERENCE, minutes=options.minutes, split=options.split)
        ensemble = self_ensemble(runs[REFERENCE], cohort, split=options.split, noise=noise)
        save("recipe", {**found, "self_ensemble": ensemble})
        _write_page()


def self_ensemble(runs: Sequence[Path], cohort: Path, *, split: str, noise: NoiseConfig) -> dict[str, dict[str, float]]:
    """What averaging with the mirrored image's output adds: paired differences by metric, seeds averaged first."""
    gained: dict[str, list[list[float]]] = {"psnr": [], "ssim": []}
    patients: list[str] = []
    for path in runs:
        images = TrainingImages.open(cohort, at_noise(RunFolder(path).config(), noise))
        denoiser, rows = Denoiser.load(path, device="cpu"), images.sets[split]
        patients = [images.data.patient_id(int(row)) for row in rows]
        of_run: dict[str, list[float]] = {metric: [] for metric in gained}
        for row in rows:
            batch = images.held_out_batch(np.array([row]), torch.device("cpu"))
            clean, noisy = batch.clean[0, 0].numpy(), batch.noisy[0, 0].numpy()
            plain = denoiser(noisy)
            mirrored = denoiser(np.ascontiguousarray(noisy[:, ::-1]))[:, ::-1]
            before, after = (scores_of(one, clean, None) for one in (plain, (plain + mirrored) / 2))
            for metric, values in of_run.items():
                values.append(after[metric] - before[metric])
        for metric, values in of_run.items():
            gained[metric].append(values)
    return {metric: interval(np.mean(values, axis=0).tolist(), patients) for metric, values in gained.items()}


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
