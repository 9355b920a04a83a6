"""Quality for equal compute: the default recipe against the released one, same U-Net, same radiographs.

    python benchmarks/quality.py --data shared/data/nih256 [--minutes 10] [--seeds 1 2 3] [--out DIR] [--save]

Every run gets `--minutes` of two cores, as twice as many minutes of one: two runs go side by side with a thread each,
which wastes nothing at barriers. The clock is the processor time of the training process, so other work on the machine
counts against neither side: a trial of some steps gives a recipe's cost, and from it follows the number of epochs; what
was really used is recorded. The released recipe is the `paper`
preset on the patient-wise split: L1, Adam, 1e-3 constant, fixed noise, fp32, NCHW, batch 16, best checkpoint by
validation loss. Splits are those of splits/nih256.csv; the test patients are looked at once, at the end.
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
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from common import save, table
from veilray.cohort.build import import_radiographs
from veilray.evaluation.compare import compare
from veilray.evaluation.evaluate import Perceptual, evaluate_run
from veilray.evaluation.results import METRICS
from veilray.metrics.interval import Interval
from veilray.metrics.lpips import load_lpips
from veilray.training.config import RunConfig, load_config
from veilray.training.data import TrainingImages
from veilray.training.loop import train
from veilray.training.run import EpochRecord, RunFolder

SPLIT = Path(__file__).parent / "splits" / "nih256.csv"
CORES = 2
COMMON = ["model.width=16", "noise.std=0.2", "split.rule=cohort", "launch.device=cpu"]
RECIPES = {
    "released": ("paper", []),
    "veilray": ("default", ["train.batch_size=4", "train.crop=128", "train.flips=true"]),
}
# Huge pages are part of what `veilray train` does; the released scripts run without them.
ENVIRONMENT = {"released": {"THP_MEM_ALLOC_ENABLE": "0"}, "veilray": {"THP_MEM_ALLOC_ENABLE": "1"}}
TRIAL_STEPS = 24


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the NIH radiographs at 256 px")
    parser.add_argument("--lpips-backbone", type=Path)
    parser.add_argument("--minutes", type=float, default=10.0, help="of two cores, for each run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--out", type=Path, help="keeps the runs there, and goes on with what is there already")
    parser.add_argument("--save", action="store_true", help="write results/quality.json")
    parser.add_argument("--split", choices=["test", "validation"], default="test")
    parser.add_argument("--recipe", action="append", choices=list(RECIPES), help="only this one")
    parser.add_argument("--set", dest="overrides", action="append", default=[], help="for trials on validation images")
    parser.add_argument("--train", nargs=4, metavar=("RECIPE", "SEED", "COHORT", "RUN"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train:
        _train(*options.train, minutes=options.minutes, overrides=options.overrides)
        return
    with tempfile.TemporaryDirectory() as scratch:
        _measure(options, options.out or Path(scratch))


def _measure(options: argparse.Namespace, folder: Path) -> None:
    cohort = folder / "cohort"
    if not cohort.exists():
        import_radiographs([options.data], cohort, size=256, split_file=SPLIT)
    wanted = {
        folder / f"{recipe}-{seed}": (recipe, seed) for seed in options.seeds for recipe in options.recipe or RECIPES
    }
    with ThreadPoolExecutor(CORES) as pool:
        missing = {run: what for run, what in wanted.items() if not (run / "processor.json").exists()}
        list(pool.map(lambda run: _in_its_own_process(*missing[run], cohort, run, options), missing))
    runs = list(wanted)
    for run in runs:
        _evaluate(RunFolder(run), cohort, options)
    comparison = compare(runs)
    rows: list[list[str]] = []
    for level in comparison.levels:
        rows += [[arm.label, *(_text(v) if v else "-" for v in arm.metrics.values())] for arm in level.arms]
        for pair in level.pairs:
            d = pair.difference
            print(f"{pair.first} - {pair.second}, {pair.metric}: {_text(d)}, p {pair.p_holm:.2g}")
    print(table(["method", *METRICS], rows))
    if options.save:
        save("quality", _record(options, runs, comparison))


def _text(value: Interval) -> str:
    return f"{value.mean:.4g} [{value.low:.4g}, {value.high:.4g}]"


def _record(options: argparse.Namespace, runs: list[Path], comparison: Any) -> dict[str, Any]:
    level = comparison.levels[0]
    return {
        "minutes_of_two_cores": options.minutes,
        "split": comparison.split,
        "images": len(comparison.image_ids),
        "patients": len(set(comparison.patient_ids)),
        "cohort_digest": comparison.cohort_digest,
        "arms": {
            arm.label: {name: v.model_dump() for name, v in arm.metrics.items() if v is not None} for arm in level.arms
        },
        "differences": [
            {
                "first": pair.first,
                "second": pair.second,
                "metric": pair.metric,
                **pair.difference.model_dump(),
                "p_holm": pair.p_holm,
                "share_won": pair.share_won,
            }
            for pair in level.pairs
        ],
        "runs": {
            run.name: {
                **json.loads((run / "processor.json").read_text()),
                "config": RunFolder(run).config().model_dump(mode="json"),
                "epochs": [asdict(record) for record in RunFolder(run).epochs()][-1],
                "model": json.loads((run / "evaluation" / "summary.json").read_text())["methods"]["model"],
            }
            for run in runs
        },
    }


def _in_its_own_process(recipe: str, seed: int, cohort: Path, run: Path, options: argparse.Namespace) -> None:
    command = [sys.executable, __file__, "--data", str(options.data), "--minutes", str(options.minutes)]
    for override in options.overrides:
        command += ["--set", override]
    subprocess.run(
        [*command, "--train", recipe, str(seed), str(cohort), str(run)],
        check=True,
        env={**os.environ, **ENVIRONMENT[recipe]},
    )


class _Quiet:
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


def _train(recipe: str, seed: str, cohort: str, path: str, *, minutes: float, overrides: list[str]) -> None:
    torch.set_num_threads(1)
    preset, changes = RECIPES[recipe]
    settings = [*COMMON, *changes, *overrides, f"seed={seed}"]
    budget = 60 * minutes * CORES
    epochs = max(1, int(budget / _epoch_cost(load_config(preset, settings), cohort)))
    config = load_config(preset, [*settings, f"train.epochs={epochs}"])
    images = TrainingImages.open(cohort, config)
    run = RunFolder.create(path, config)
    run.write_environment({"cohort": cohort, "cohort_digest": images.data.digest}, device=torch.device("cpu"))
    wall, processor = time.perf_counter(), time.process_time()
    train(config, images, run, device=torch.device("cpu"), watcher=_Quiet())
    used = {"minutes_of_two_cores": (time.process_time() - processor) / 60 / CORES}
    used["wall_minutes"] = (time.perf_counter() - wall) / 60
    (run.path / "processor.json").write_text(json.dumps({**used, "epochs": epochs}))


def _epoch_cost(config: RunConfig, cohort: str) -> float:
    """Processor seconds of an epoch: its steps, by a trial, and its validation, at a third of the cost an image."""
    images = TrainingImages.open(cohort, config)
    watch = _Quiet(stop_after=TRIAL_STEPS)
    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder.create(Path(folder) / "trial", config)
        with contextlib.suppress(_TrialOverError):
            train(config, images, run, device=torch.device("cpu"), watcher=watch)
    half = len(watch.cost) // 2
    step = (watch.cost[-1] - watch.cost[half]) / (len(watch.cost) - 1 - half)
    seen = len(images.sets["train"]) + len(images.sets["validation"]) / 3
    return step * seen / config.train.batch_size


def _evaluate(run: RunFolder, cohort: Path, options: argparse.Namespace) -> None:
    perceptual = Perceptual(network=None, note="LPIPS was not computed: no backbone was given.")
    if options.lpips_backbone:
        perceptual = Perceptual(network=load_lpips(options.lpips_backbone))
    images = TrainingImages.open(cohort, run.config())
    evaluate_run(run, images, split=options.split, perceptual=perceptual, device=torch.device("cpu"))


if __name__ == "__main__":
    main()
