"""What one network for every noise and hospital gives away: against the same network trained on for one of them.

    python benchmarks/specialists.py --data FOLDER --lpips-backbone FILE [--minutes 3] [--out DIR] [--save]

FOLDER holds nih256, hannover256 and index.csv. From the weights that ship as `default`, with equal processor time
(equal_compute.py says how it is measured), one network is trained on for every noise, as `default` was; one for each of
three levels; and one for every noise on another hospital's patients. They are scored at those levels on test patients
of NIH, and the last beside `default` itself on test patients of its own hospital. That all start from `default` makes
them the harder rivals: from drawn weights, none would come as far in that time. With --out what is trained stays
there, and a stopped script goes on with the rest. --save writes results/specialists.json and the table of
docs/explanation/comparison.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from common import RESULTS, save
from equal_compute import Recipe, Scores, make_cohort, run_record, run_script, train_all
from hospitals import write_patients
from specialists_pages import write_page
from veilray.cohort.build import import_radiographs
from veilray.cohort.split import Shares
from veilray.evaluation.evaluate import evaluate
from veilray.evaluation.levels import at_noise
from veilray.evaluation.results import METRICS
from veilray.evaluation.scoring import Perceptual
from veilray.evaluation.subject import open_subject
from veilray.metrics.lpips import load_lpips
from veilray.obfuscation.config import NoiseConfig
from veilray.training.data import TrainingImages

LEVELS = ("0.1", "0.2", "0.3")
MEAN = 0.1
SHIPPED = "shipped:default"
EVERY_NOISE = "every_noise"
THERE = "on_hannover"
CONFIG = Path(__file__).parent / "models" / "default-eighth.toml"
ON = [f"train.start={SHIPPED}", "train.learning_rate=3e-4", "train.warmup_steps=50", "train.ema_decay=0.995"]
HANNOVER = Shares(train=60, validation=10, test=30)


def only(level: str) -> str:
    """The name of the network for one level."""
    return f"only_{level}"


def _recipe(*changes: str) -> Recipe:
    return Recipe(preset=str(CONFIG), settings=[*ON, *changes], environment={"THP_MEM_ALLOC_ENABLE": "1"})


AT_NIH = {
    EVERY_NOISE: _recipe(),
    **{only(level): _recipe(f"noise.std={level}", f"noise.mean={MEAN}") for level in LEVELS},
}
AT_HANNOVER = {THERE: _recipe()}


def main() -> None:
    run_script(
        __doc__,
        AT_NIH | AT_HANNOVER,
        minutes=3.0,
        measure=_measure,
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
    found: dict[str, Any] = {"nih": {}, "hannover": {}}
    for level in LEVELS:
        arms: dict[str, Sequence[str | Path]] = {
            "default": [SHIPPED],
            **{n: runs[n] for n in (EVERY_NOISE, only(level))},
        }
        found["nih"][level] = _compared(_scored(arms, nih, level, options, folder), arms, against=EVERY_NOISE)
        arms = {"default": [SHIPPED], THERE: runs[THERE]}
        found["hannover"][level] = _compared(_scored(arms, hannover, level, options, folder), arms, against="default")
        print(level, json.dumps({place: found[place][level]["differences"] for place in found}))
    if options.save:
        found["runs"] = {name: [run_record(path) for path in paths] for name, paths in runs.items()}
        facts = {"minutes_of_two_cores": options.minutes, "split": options.split, "mean": MEAN, "seeds": options.seeds}
        save("specialists", {**facts, **found})
        write_page(json.loads((RESULTS / "specialists.json").read_text(encoding="utf-8")))


def _scored(
    arms: Mapping[str, Sequence[str | Path]], cohort: Path, level: str, options: argparse.Namespace, folder: Path
) -> Scores:
    """Every network of every arm on the set that the options name, at one level."""
    perceptual = Perceptual(network=None, note="LPIPS was not computed: no backbone was given.")
    if options.lpips_backbone:
        perceptual = Perceptual(network=load_lpips(options.lpips_backbone))
    noise = NoiseConfig(mean=MEAN, std=float(level))
    results: dict[str, list[Path]] = {}
    for name, sources in arms.items():
        for number, source in enumerate(sources):
            subject = open_subject(source)
            out = folder / "scores" / cohort.name / level / f"{name}-{number}"
            evaluate(
                subject,
                TrainingImages.open(cohort, at_noise(subject.config, noise)),
                out=out,
                split=options.split,
                perceptual=perceptual,
                device=torch.device("cpu"),
            )
            results.setdefault(name, []).append(out)
    return Scores(results)


def _compared(scores: Scores, arms: Mapping[str, object], *, against: str) -> dict[str, Any]:
    others = [name for name in arms if name != against]
    return {
        "images": len(scores.image_ids),
        "patients": len(set(scores.patients)),
        "metrics": {name: {metric: scores.mean(name, metric) for metric in METRICS} for name in arms},
        "against": against,
        "differences": {
            name: {metric: scores.difference(name, against, metric) for metric in METRICS} for name in others
        },
    }


if __name__ == "__main__":
    main()
