"""`default` against the networks that others published, trained on the same radiographs for minutes of this machine.

    python benchmarks/rivals.py --data NIH256 --lpips-backbone FILE [--minutes 13] [--out DIR] [--save]

U-Net and U-Net++ by the `paper` preset, at width 32, since width 64 wants a GPU; DnCNN, TNRD, and DnCNN-3, which is
blind. All but the last are for one level of noise, and there is one of each for each. U-Net and U-Net++ have the
minutes given, the others, which are smaller, two fifths of them (equal_compute.py says how they are counted); `default`
has had more, and is the network that ships. bf16 and channels-last where they are faster, which gets the rivals
farther than their papers' formats would. With --out what is
trained stays there, and a stopped script goes on with the rest. --save writes results/rivals.json and the table of
docs/explanation/comparison.md; --pages writes the table from the record that is there.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from common import RESULTS, save
from equal_compute import Recipe, make_cohort, run_record, run_script, train_all
from side_by_side import LEVELS, MEAN, SHIPPED, compared
from side_by_side_pages import write_rivals

_HERE = ["launch.device=cpu", "launch.precision=auto", "launch.layout=channels_last", "split.rule=cohort"]
PAPER = ["model.width=32", *_HERE]
ONE_LEVEL = {
    "unet": ("paper", PAPER),
    "unetpp": ("paper", [*PAPER, "model.name=unetpp"]),
    "dncnn": ("dncnn", [*_HERE, "train.validate_every=1"]),
    "tnrd": ("tnrd", [*_HERE, "train.validate_every=1"]),
}
BLIND = {"dncnn3": ("dncnn3", [*_HERE, "train.validate_every=1"])}
_SHARE_OF_SMALL = 0.4
_TRIAL_STEPS = 6
"""Fewer than others have: a step of the larger networks takes ten seconds of a core."""


def for_level(name: str, level: str) -> str:
    """The name of a rival's run for one level."""
    return f"{name}_{level}"


def _recipe(preset: str, *settings: str) -> Recipe:
    huge_pages = {"THP_MEM_ALLOC_ENABLE": "1"}
    share = 1.0 if preset == "paper" else _SHARE_OF_SMALL
    return Recipe(preset=preset, settings=settings, environment=huge_pages, trial_steps=_TRIAL_STEPS, share=share)


RECIPES = {
    **{
        for_level(name, level): _recipe(preset, *settings, f"noise.std={level}")
        for level in LEVELS
        for name, (preset, settings) in ONE_LEVEL.items()
    },
    **{name: _recipe(preset, *settings) for name, (preset, settings) in BLIND.items()},
}


def main() -> None:
    run_script(__doc__, RECIPES, minutes=13.0, measure=_measure, page=_write_page, seeds=[1])


def _measure(options: argparse.Namespace, folder: Path) -> None:
    cohort = make_cohort(folder, options.data)
    runs = train_all(__file__, RECIPES, seeds=options.seeds, folder=folder, cohort=cohort, minutes=options.minutes)
    levels: dict[str, Any] = {}
    for level in LEVELS:
        rivals = {name: runs[for_level(name, level)] for name in ONE_LEVEL} | {name: runs[name] for name in BLIND}
        arms = {"default": [SHIPPED], **rivals}
        levels[level] = compared(arms, cohort, level, against="default", options=options, folder=folder)
        print(level, json.dumps(levels[level]["differences"]))
    if options.save:
        trained = {name: [run_record(path) for path in paths] for name, paths in runs.items()}
        facts = {"minutes_of_two_cores": options.minutes, "split": options.split, "mean": MEAN, "seeds": options.seeds}
        save("rivals", {**facts, "nih": levels, "runs": trained})
        _write_page()


def _write_page() -> None:
    write_rivals(json.loads((RESULTS / "rivals.json").read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
