"""Trains and scores one cell of noisy_only.py; goes on where it was cut short."""

from __future__ import annotations

import fcntl
import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

from noisy_only_arms import BEST, Cell, Places, config_of, start_config
from veilray.cohort.cohort import Cohort
from veilray.evaluation.criterion import noisy_criterion
from veilray.files import read_json, write_json
from veilray.inference.denoiser import Denoiser
from veilray.metrics.psnr import psnr
from veilray.training.config import RunConfig
from veilray.training.data import TrainingImages
from veilray.training.loop import train
from veilray.training.run import EpochRecord, RunFolder

CPU = torch.device("cpu")


@dataclass
class Bookkeeper:
    """Follows a training: a line an epoch, and the processor seconds of all lives of the run beside it."""

    run: RunFolder
    since: float = field(default_factory=time.process_time)

    def begin(self, *, images: int) -> None:
        """Nothing to say."""

    def step(self, *, step: int, images: int, loss: float) -> None:
        """Nothing to say."""

    def epoch(self, record: EpochRecord) -> None:
        """Print, and write down what was spent."""
        now = time.process_time()
        write_json(self.run.path / "processor.json", {"seconds": spent(self.run) + now - self.since})
        self.since = now
        print(f"  epoch {record.epoch}: {record.validation_loss:.6f}, {record.validation_psnr:.3f} dB", flush=True)

    def note(self, message: str) -> None:
        """Print."""
        print(f"  {message}", flush=True)


def spent(run: RunFolder) -> float:
    """Processor seconds of a run so far."""
    path = run.path / "processor.json"
    return float(read_json(path)["seconds"]) if path.exists() else 0.0


def result_path(name: str, places: Places, split: str) -> Path:
    """Where the result of a cell lies."""
    return places.out / f"{name}-{split}.json"


def run_cell(cell: Cell, places: Places, split: str) -> None:
    """Train and score one cell, unless its result is there or another process is at it."""
    result = result_path(cell.name, places, split)
    if result.exists() and read_result(result)["made_by"] == made_by(cell, places):
        return
    with _alone(places.out / f"{cell.name}.lock") as alone:
        if not alone:
            print(f"{cell.name}: another process is at it", flush=True)
            return
        if cell.arm.started:
            _make_start(places, wide=cell.arm.wide)
        release = places.release(cell)
        config = config_of(cell, places)
        run = _run(cell, config, places) if cell.arm.trained else RunFolder(places.start(wide=False))
        images = TrainingImages.open(release, _scored_on(config), verify=False)
        scores = score(Denoiser.load(run.path, device="cpu"), images, split)
        own = {"made_by": made_by(cell, places), "start": config.train.start_sha256}
        write_json(result, {**_facts(cell, run), **own, "images": scores, "common": common(run, images)})


def made_by(cell: Cell, places: Places) -> str:
    """A digest of all that a result depends on, but for the weights of a start and for rounding."""
    config = config_of(cell, places, pinned=False).model_dump(mode="json")
    config["train"]["start"] = start_config(wide=cell.arm.wide).model_dump(mode="json") if cell.arm.started else ""
    return hashlib.sha256(json.dumps([config, *_data(places)], sort_keys=True).encode()).hexdigest()


@cache
def _data(places: Places) -> tuple[str, ...]:
    """The digest of the cohort, and what another hospital's radiographs are called."""
    return Cohort.open(places.data).digest, *sorted(path.name for path in places.public.iterdir())


@contextmanager
def _alone(path: Path) -> Iterator[bool]:
    """Whether no other process holds this lock; it goes with the process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def _make_start(places: Places, *, wide: bool) -> None:
    images = TrainingImages.open(places.public_cohort(), start_config(wide=wide), verify=False)
    run = places.start(wide=wide)
    trained(run, images, run.name)


def _run(cell: Cell, config: RunConfig, places: Places) -> RunFolder:
    data = places.data if cell.arm.fresh else places.release(cell)
    clean = places.public_cohort() if cell.arm.mixed else None
    second = places.release(cell, second=True) if cell.arm.objective == "noise2noise" else None
    images = TrainingImages.open(data, config, clean=clean, second=second, verify=False)
    return trained(places.out / cell.name, images, cell.name)


def trained(folder: Path, images: TrainingImages, name: str) -> RunFolder:
    """The run in a folder, trained to its end from where it is; SystemExit where it is stopped."""
    if (folder / "config.toml").exists():
        run = RunFolder.resume(folder, images.config)
    else:
        print(name, flush=True)
        run = RunFolder.create(folder, images.config)
    if not (folder / "environment.json").exists():
        run.write_environment({"cohort_digest": images.data.digest}, device=CPU)
    if not any(record.epoch == images.config.train.epochs for record in run.epochs()):
        outcome = train(images.config, images, run, device=CPU, watcher=Bookkeeper(run))
        if outcome.interrupted:  # else what is half done would be scored
            raise SystemExit(f"{name}: stopped; the same command goes on")
    return run


def _scored_on(config: RunConfig) -> RunConfig:
    """The same with the noise that the release decides, and without a second release."""
    noise = config.noise.model_copy(update={"fresh": False})
    objective = BEST[noise.clip] if config.train.objective == "noise2noise" else config.train.objective
    train_ = config.train.model_copy(update={"objective": objective})
    return config.model_copy(update={"noise": noise, "train": train_})


def _facts(cell: Cell, run: RunFolder) -> dict[str, Any]:
    return {
        "arm": cell.arm.name,
        "reference": cell.arm.reference,
        "kind": cell.arm.kind,
        "clamped": cell.arm.clip,
        "std": cell.std,
        "seed": cell.seed,
        "epochs": cell.arm.epochs if cell.arm.trained else 0,
        "learning_rate": cell.arm.learning_rate,
        "processor_seconds": spent(run),
        "choice": choice(run) if cell.arm.trained else None,
        "by_epoch": [[one.validation_loss, one.validation_psnr] for one in run.epochs()] if cell.arm.trained else [],
    }


def score(denoiser: Denoiser, images: TrainingImages, split: str) -> list[dict[str, Any]]:
    """PSNR of every image of a set, output clamped, as the model is used."""
    scores = []
    for batch in images.held_out_batches(split, CPU, batch_size=8):
        output = denoiser.denoise(batch.noisy, mean=batch.known[:, 0], std=batch.known[:, 1]).clamp(0.0, 1.0)
        for row, decibels in zip(batch.rows, psnr(output, batch.clean, data_range=1.0), strict=True):
            patient = images.data.patient_id(int(row))
            scores.append({"image": images.image_id(int(row)), "patient": patient, "psnr": decibels.item()})
    return sorted(scores, key=lambda one: str(one["image"]))


def choice(run: RunFolder) -> dict[str, float]:
    """How the epoch that a run chose compares with the one that true PSNR would have chosen, on validation images."""
    records = run.epochs()
    true = np.array([record.validation_psnr for record in records], dtype=np.float64)
    losses = np.array([record.validation_loss for record in records])
    agreement = float(spearmanr(-losses, true).statistic) if len(records) > 2 else 1.0
    chosen, best = int(losses.argmin()), int(true.argmax())
    return {
        "gap_db": float(true[best] - true[chosen]),
        "gap_of_the_last_db": float(true[best] - true[-1]),
        "rank_correlation": agreement,
        "checkpoints": len(records),
        "chosen": chosen + 1,
        "best": best + 1,
    }


def common(run: RunFolder, images: TrainingImages) -> dict[str, float]:
    """The criterion that every recipe can be asked for, of the chosen weights, and their true PSNR.

    On the validation images.
    """
    denoiser = Denoiser.load(run.path, device="cpu", precision="fp32")
    train_ = images.config.train.model_copy(update={"objective": BEST[images.noise.clip]})
    asked = TrainingImages(images.data, images.config.model_copy(update={"train": train_}))
    true = [one["psnr"] for one in score(denoiser, asked, "validation")]
    return {"criterion": noisy_criterion(denoiser, asked, CPU), "psnr": float(np.mean(true))}


def read_result(path: Path) -> dict[str, Any]:
    """A cell's result."""
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return result
