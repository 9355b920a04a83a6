"""Quality for equal compute: the default recipe against the released one, same U-Net, same radiographs.

    python benchmarks/quality.py --data shared/data/nih256 [--minutes 10] [--seeds 1 2 3] [--out DIR] [--save]

How equal compute is measured says equal_compute.py. The released recipe is the `paper` preset on the patient-wise
split: L1, Adam, 1e-3 constant, fixed noise, fp32, NCHW, batch 16, best checkpoint by validation loss. The test patients
are looked at once, at the end.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from common import save, table
from equal_compute import Recipe, Scores, evaluate_all, make_cohort, record, run_script, train_all
from veilray.evaluation.results import METRICS

COMMON = ["model.width=16", "noise.std=0.2", "split.rule=cohort", "launch.device=cpu"]
# Huge pages are part of what `veilray train` does; the released scripts run without them.
RECIPES = {
    "released": Recipe(preset="paper", settings=COMMON, environment={"THP_MEM_ALLOC_ENABLE": "0"}),
    "veilray": Recipe(
        preset="default",
        settings=[*COMMON, "train.batch_size=4", "train.crop=128", "train.flips=true"],
        environment={"THP_MEM_ALLOC_ENABLE": "1"},
    ),
}


def main() -> None:
    run_script(__doc__, RECIPES, minutes=10.0, measure=_measure)


def _measure(options: argparse.Namespace, folder: Path) -> None:
    cohort = make_cohort(folder, options.data)
    runs = train_all(__file__, RECIPES, seeds=options.seeds, folder=folder, cohort=cohort, minutes=options.minutes)
    scores = evaluate_all(runs, cohort, split=options.split, lpips_backbone=options.lpips_backbone)
    _show(scores)
    if options.save:
        save("quality", record(runs, scores, reference="released", minutes=options.minutes, split=options.split))


def _show(scores: Scores) -> None:
    rows = []
    for name in RECIPES:
        means = [scores.mean(name, metric) for metric in METRICS]
        rows.append(
            [name, *("-" if m is None else f"{m['mean']:.4g} [{m['low']:.4g}, {m['high']:.4g}]" for m in means)]
        )
    print(table(["recipe", *METRICS], rows))
    for metric in METRICS:
        difference = scores.difference("veilray", "released", metric)
        if difference is not None:
            print(f"veilray - released, {metric}: {difference}")
    print("The aim is a PSNR 1.5 dB above that of the released recipe.")


if __name__ == "__main__":
    main()
