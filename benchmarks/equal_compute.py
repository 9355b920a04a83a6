"""Trainings that each get the same processor time, their scores pooled over seeds: what quality.py and recipe.py share.

Every run gets so many minutes of two cores, as twice as many minutes of one: two runs go side by side with a thread
each, which wastes nothing at barriers. The clock is the processor time of the training process, so other work on the
machine counts against no run: a trial of some steps gives a recipe's cost, and from it follows the number of epochs;
what was really used is recorded. Splits are those of splits/nih256.csv.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from veilray.cohort.build import import_radiographs
from veilray.evaluation.evaluate import evaluate_run
from veilray.evaluation.results import METRICS, MODEL, read_scores
from veilray.evaluation.scoring import BOOTSTRAP_SEED, Perceptual
from veilray.metrics.lpips import load_lpips
from veilray.metrics.statistics import clustered_bootstrap, paired_comparison
from veilray.obfuscation.config import NoiseConfig
from veilray.training.config import RunConfig, load_config
from veilray.training.data import TrainingImages
from veilray.training.loop import train
from veilray.training.run import EpochRecord, RunFolder

SPLIT = Path(__file__).parent / "splits" / "nih256.csv"
CORES = 2
LOWER_IS_BETTER = {"lpips"}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A way to train."""

    preset: str
    settings: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    trial_steps: int = 24
    """So many steps tell what one costs; the first half is for warming up."""
    share: float = 1.0
    """How much of the minutes given it has: less where a network needs less, more where it is trained from scratch."""


def make_cohort(folder: Path, data: Path) -> Path:
    """The NIH radiographs as a cohort under `folder`, made where it is not there yet."""
    cohort = folder / "cohort"
    if not cohort.exists():
        import_radiographs([data], cohort, size=256, split_file=SPLIT)
    return cohort


def train_all(
    script: str, recipes: Mapping[str, Recipe], *, seeds: Sequence[int], folder: Path, cohort: Path, minutes: float
) -> dict[str, list[Path]]:
    """Train what `folder` does not hold yet, two runs side by side; `script` has `train_one` behind `--train`."""
    runs = {name: [folder / f"{name}-{seed}" for seed in seeds] for name in recipes}
    # Seed by seed, so that what is there after a while says something about every recipe.
    missing = [
        (name, seed)
        for seed in seeds
        for name in recipes
        if not (folder / f"{name}-{seed}" / "processor.json").exists()
    ]

    def start(what: tuple[str, int]) -> None:
        name, seed = what
        words = [
            sys.executable,
            script,
            "--minutes",
            str(minutes * recipes[name].share),
            "--train",
            name,
            str(seed),
            str(cohort),
            str(folder),
        ]
        subprocess.run(words, check=True, env={**os.environ, **recipes[name].environment})

    with ThreadPoolExecutor(CORES) as pool:
        list(pool.map(start, missing))
    return runs


def train_one(recipe: Recipe, *, name: str, seed: str, cohort: str, folder: str, minutes: float) -> None:
    """One run with one thread, as many epochs as its processor time allows."""
    torch.set_num_threads(1)
    settings = [*recipe.settings, f"seed={seed}"]
    budget = 60 * minutes * CORES
    epochs = max(1, int(budget / _epoch_cost(load_config(recipe.preset, settings), cohort, recipe.trial_steps)))
    config = load_config(recipe.preset, [*settings, f"train.epochs={epochs}"])
    images = TrainingImages.open(cohort, config)
    path = Path(folder) / f"{name}-{seed}"
    if path.exists():
        path.rename(Path(tempfile.mkdtemp(dir=folder, prefix=".cut-short-")) / path.name)
    run = RunFolder.create(path, images.config)
    run.write_environment({"cohort": cohort, "cohort_digest": images.data.digest}, device=torch.device("cpu"))
    wall, processor = time.perf_counter(), time.process_time()
    train(config, images, run, device=torch.device("cpu"), watcher=Quiet())
    used = {"minutes_of_two_cores": (time.process_time() - processor) / 60 / CORES}
    used["wall_minutes"] = (time.perf_counter() - wall) / 60
    (run.path / "processor.json").write_text(json.dumps({**used, "epochs": epochs}))


def run_script(
    doc: str | None,
    recipes: Mapping[str, Recipe],
    *,
    minutes: float,
    measure: Callable[[argparse.Namespace, Path], None],
    page: Callable[[], None] | None = None,
    data: str = "folder of the NIH radiographs at 256 px",
    seeds: Sequence[int] = (1, 2, 3),
) -> None:
    """The command line of a script.

    `measure` gets its options and the folder for its runs, `page` writes its page, `data` says what --data is.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help=data)
    parser.add_argument("--lpips-backbone", type=Path)
    parser.add_argument("--minutes", type=float, default=minutes, help="of two cores, for each run")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(seeds))
    parser.add_argument("--out", type=Path, help="keeps the runs there, and goes on with what is there already")
    parser.add_argument("--save", action="store_true", help="write the record in results/")
    if page is not None:
        parser.add_argument("--pages", action="store_true", help="write the page from the record that is there")
    parser.add_argument("--split", choices=["test", "validation"], default="test")
    parser.add_argument("--train", nargs=4, metavar=("RECIPE", "SEED", "COHORT", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train:
        name, seed, cohort, folder = options.train
        train_one(recipes[name], name=name, seed=seed, cohort=cohort, folder=folder, minutes=options.minutes)
        return
    if page is not None and options.pages:
        page()
        return
    if options.data is None:
        parser.error("--data names the radiographs")
    with tempfile.TemporaryDirectory() as scratch:
        measure(options, options.out or Path(scratch))


class Scores:
    """Per-image scores of recipes over seeds, on the same images: metric -> (seeds, images)."""

    def __init__(self, runs: Mapping[str, Sequence[Path]]) -> None:
        first = [score for score in read_scores(next(iter(runs.values()))[0]) if score.method == MODEL]
        self.image_ids = [score.image_id for score in first]
        self.patients = [score.patient_id for score in first]
        self._of = {name: self._read(paths) for name, paths in runs.items()}

    def mean(self, recipe: str, metric: str) -> dict[str, float] | None:
        """Mean over seeds and images, 95 % interval clustered by patient; None where it was not computed."""
        values = self._of[recipe][metric]
        if values is None:
            return None
        return clustered_bootstrap(values.mean(axis=0), self.patients, seed=BOOTSTRAP_SEED).model_dump()

    def difference(self, recipe: str, reference: str, metric: str) -> dict[str, float] | None:
        """Paired difference of two recipes, image by image, seeds averaged first."""
        mine, other = self._of[recipe][metric], self._of[reference][metric]
        if mine is None or other is None:
            return None
        compared = paired_comparison(
            mine, other, self.patients, higher_is_better=metric not in LOWER_IS_BETTER, seed=BOOTSTRAP_SEED
        )
        spread = (mine.mean(axis=1) - other.mean(axis=1)).tolist()
        return {**compared.difference.model_dump(), "p": compared.p_value, "by_seed": spread}

    def _read(self, paths: Sequence[Path]) -> dict[str, npt.NDArray[np.float64] | None]:
        rows = []
        for path in paths:
            by_id = {score.image_id: score for score in read_scores(path) if score.method == MODEL}
            rows.append([by_id[image_id] for image_id in self.image_ids])
        columns: dict[str, npt.NDArray[np.float64] | None] = {}
        for metric in METRICS:
            values = [[getattr(score, metric) for score in row] for row in rows]
            columns[metric] = None if any(None in row for row in values) else np.array(values, dtype=np.float64)
        return columns


def evaluate_all(
    runs: Mapping[str, Sequence[Path]],
    cohort: Path,
    *,
    split: str,
    lpips_backbone: Path | None,
    noise: NoiseConfig | None = None,
) -> Scores:
    """Score every run on a set, at its own noise or at the `noise` given."""
    perceptual = Perceptual(network=None, note="LPIPS was not computed: no backbone was given.")
    if lpips_backbone:
        perceptual = Perceptual(network=load_lpips(lpips_backbone))
    for paths in runs.values():
        for path in paths:
            run = RunFolder(path)
            config = run.config() if noise is None else run.config().model_copy(update={"noise": noise})
            images = TrainingImages.open(cohort, config)
            evaluate_run(run, images, split=split, perceptual=perceptual, device=torch.device("cpu"))
    return Scores(runs)


def record(
    runs: Mapping[str, Sequence[Path]], scores: Scores, *, reference: str, minutes: float, split: str
) -> dict[str, Any]:
    """What to keep of it all."""
    summary = json.loads((next(iter(runs.values()))[0] / "evaluation" / "summary.json").read_text())
    return {
        "minutes_of_two_cores": minutes,
        "split": split,
        "images": len(scores.image_ids),
        "patients": len(set(scores.patients)),
        "cohort_digest": summary["cohort_digest"],
        "noise": summary["noise"],
        "recipes": {
            name: {
                "metrics": {metric: scores.mean(name, metric) for metric in METRICS},
                "against": reference,
                "differences": {
                    metric: scores.difference(name, reference, metric) for metric in METRICS if name != reference
                },
                "runs": [run_record(path) for path in paths],
            }
            for name, paths in runs.items()
        },
    }


def run_record(path: Path) -> dict[str, Any]:
    """What a run was: its configuration, the processor time it took, its last epoch."""
    run = RunFolder(path)
    return {
        **json.loads((path / "processor.json").read_text()),
        "config": run.config().model_dump(mode="json"),
        "last_epoch": asdict(run.epochs()[-1]),
    }


class Quiet:
    """Prints an epoch's line; raises after some steps where it is a trial."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.cost: list[float] = []
        self._stop_after = stop_after

    def begin(self, *, images: int) -> None:
        """Nothing was done before."""

    def step(self, *, step: int, images: int, loss: float) -> None:
        self.cost.append(time.process_time())
        if step == self._stop_after:
            raise _TrialOverError

    def epoch(self, record: EpochRecord) -> None:
        print(
            f"epoch {record.epoch}: {record.validation_psnr:.2f} dB, {record.images_per_second:.1f} images/s",
            flush=True,
        )

    def note(self, message: str) -> None:
        print(message, flush=True)


class _TrialOverError(Exception):
    pass


def _epoch_cost(config: RunConfig, cohort: str, trial_steps: int) -> float:
    """Processor seconds of an epoch: its steps, by a trial, and its validation, at a third of the cost an image."""
    images = TrainingImages.open(cohort, config)
    watch = Quiet(stop_after=trial_steps)
    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder.create(Path(folder) / "trial", config)
        with contextlib.suppress(_TrialOverError):
            train(config, images, run, device=torch.device("cpu"), watcher=watch)
    half = len(watch.cost) // 2
    step = (watch.cost[-1] - watch.cost[half]) / (len(watch.cost) - 1 - half)
    seen = len(images.sets["train"]) + len(images.sets["validation"]) / 3
    return step * seen / config.train.batch_size
