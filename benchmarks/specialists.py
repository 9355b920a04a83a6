"""What one network for every noise and hospital gives away: against the same network trained on for one of them.

    python benchmarks/specialists.py --data FOLDER --lpips-backbone FILE [--minutes 3] [--out DIR] [--save]

FOLDER holds nih256, hannover256 and index.csv. From the weights that ship as `default`, with equal processor time
(equal_compute.py says how it is measured), one network is trained on for every noise, as `default` was; one for each of
three levels; and one for every noise on another hospital's patients. They are scored at those levels on test patients
of NIH, and the last beside `default` itself on test patients of its own hospital. That these start from `default` makes
them the harder rivals: from scratch, none would come as far in that time. What the other hospital could do with
nothing but its own radiographs is a network of its own, from scratch, with three times the minutes. With --out
what is trained stays there, and a stopped script goes on with the rest. --save writes results/specialists.json and the
table of docs/explanation/comparison.md; --pages writes the table from the record that is there.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import RESULTS, save
from equal_compute import Recipe, make_cohort, run_record, run_script, train_all
from hospitals import write_patients
from side_by_side import LEVELS, MEAN, SHIPPED, compared
from side_by_side_pages import write_specialists
from veilray.cohort.build import import_radiographs
from veilray.cohort.split import Shares

EVERY_NOISE = "every_noise"
THERE = "on_hannover"
ALONE = "alone_at_hannover"
CONFIG = Path(__file__).parent / "models" / "default-ninth.toml"
ON = [f"train.start={SHIPPED}", "train.learning_rate=3e-4", "train.warmup_steps=50", "train.ema_decay=0.995"]
HANNOVER = Shares(train=60, validation=10, test=30)


def only(level: str) -> str:
    """The name of the network for one level."""
    return f"only_{level}"


def _recipe(*changes: str, share: float = 1.0) -> Recipe:
    huge_pages = {"THP_MEM_ALLOC_ENABLE": "1"}
    return Recipe(preset=str(CONFIG), settings=[*ON, *changes], environment=huge_pages, share=share)


AT_NIH = {
    EVERY_NOISE: _recipe(),
    **{only(level): _recipe(f"noise.std={level}", f"noise.mean={MEAN}") for level in LEVELS},
}
FROM_SCRATCH = ["train.start=", "train.learning_rate=1e-3", "train.warmup_steps=200", "train.ema_decay=0.999"]
AT_HANNOVER = {THERE: _recipe(), ALONE: _recipe(*FROM_SCRATCH, share=3.0)}


def main() -> None:
    run_script(
        __doc__,
        AT_NIH | AT_HANNOVER,
        minutes=3.0,
        measure=_measure,
        page=_write_page,
        data="folder with nih256, hannover256 and index.csv",
        seeds=[1],
    )


def _measure(options: argparse.Namespace, folder: Path) -> None:
    nih, hannover = make_cohort(folder, options.data / "nih256"), folder / "hannover"
    if not hannover.exists():
        patients = write_patients(options.data, "hannover256", folder / "hannover-patients.csv")
        import_radiographs([options.data / "hannover256"], hannover, size=256, shares=HANNOVER, patients=patients)
    timed = {"seeds": options.seeds, "folder": folder, "minutes": options.minutes}
    runs = train_all(__file__, AT_NIH, cohort=nih, **timed)
    runs |= train_all(__file__, AT_HANNOVER, cohort=hannover, **timed)
    where = {"options": options, "folder": folder}
    found: dict[str, Any] = {"nih": {}, "hannover": {}}
    for level in LEVELS:
        trained = {name: runs[name] for name in (EVERY_NOISE, only(level))}
        arms: dict[str, Sequence[str | Path]] = {"default": [SHIPPED], **trained}
        found["nih"][level] = compared(arms, nih, level, against=EVERY_NOISE, **where)
        arms = {"default": [SHIPPED], **{name: runs[name] for name in AT_HANNOVER}}
        found["hannover"][level] = compared(arms, hannover, level, against="default", **where)
        print(level, json.dumps({place: found[place][level]["differences"] for place in found}))
    if options.save:
        found["runs"] = {name: [run_record(path) for path in paths] for name, paths in runs.items()}
        facts = {"minutes_of_two_cores": options.minutes, "split": options.split, "mean": MEAN, "seeds": options.seeds}
        save("specialists", {**facts, **found})
        _write_page()


def _write_page() -> None:
    write_specialists(json.loads((RESULTS / "specialists.json").read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
