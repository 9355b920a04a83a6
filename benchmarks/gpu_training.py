"""Sections of gpu.py that train: an epoch of the paper's size, from which 50 are projected, and a whole training."""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gpu_record import MODELS, Record, Scope, reason
from synthetic import synthetic_cohort
from veilray.cohort.build import import_radiographs
from veilray.cohort.open import open_data
from veilray.cohort.split import parse_shares
from veilray.evaluation.evaluate import evaluate_run
from veilray.evaluation.scoring import Perceptual
from veilray.images.phantom import write_phantoms
from veilray.metrics.lpips import load_lpips
from veilray.training.config import RunConfig, load_config
from veilray.training.data import TrainingImages
from veilray.training.loop import train
from veilray.training.run import EpochRecord, RunFolder

PAPER_EPOCHS = 50
PREFETCH = 6
EPOCHS_AT_LEAST = 2


class Clock:
    """Says each epoch, and notes when it ended."""

    def __init__(self) -> None:
        self.ended: list[float] = [time.perf_counter()]
        self.records: list[EpochRecord] = []
        self.steps: list[float] = []

    def begin(self, *, images: int) -> None:
        self.ended = [time.perf_counter()]

    def step(self, *, step: int, images: int, loss: float) -> None:
        self.steps.append(time.perf_counter())

    def epoch(self, record: EpochRecord) -> None:
        self.ended.append(time.perf_counter())
        self.records.append(record)
        print(f"epoch {record.epoch}: {record.validation_loss:.5f}, {record.validation_psnr:.3f} dB", flush=True)

    def note(self, message: str) -> None:
        print(message, flush=True)

    def last_epoch_s(self) -> float:
        """Seconds of the last epoch, validation and the checkpoint before it included."""
        return self.ended[-1] - self.ended[-2]

    def step_s(self) -> float:
        """Seconds of a step between validations, the median of the later half of them."""
        later = self.steps[len(self.steps) // 2 :]
        return statistics.median(after - before for before, after in itertools.pairwise(later))

    def validation_s(self) -> float:
        """Seconds of the last validation."""
        return self.records[-1].parts["validation"] + self.records[-1].parts["metrics"]


def paper_epoch(record: Record, scope: Scope, device: torch.device) -> None:
    """Train two epochs of 7,499 + 4,949 images with `veilray train`'s loop; the second is measured, 50 are projected.

    Pixels are noise, which costs what radiographs cost. The first epoch sets the libraries up and is left out.
    """
    with tempfile.TemporaryDirectory() as folder:
        cohort = synthetic_cohort(Path(folder) / "cohort", scope.paper_images, sparse=False, side=scope.size)
        # U-Net first, which a target is about, in case the time runs out.
        for model in MODELS:
            for compiled in (True, False) if scope.compile else (False,):
                name = f"{model} {'compiled' if compiled else 'eager'}"
                try:
                    figures = _paper_epoch(model, compiled, cohort, Path(folder) / name, scope, device)
                except Exception as error:
                    figures = {"status": "not measured", "reason": reason(error)}
                record.put(figures, "paper_epoch", name)


def _paper_epoch(
    model: str, compiled: bool, cohort: Path, out: Path, scope: Scope, device: torch.device
) -> dict[str, Any]:
    changes = [f"model.name={model}", "split.rule=paper", f"launch.compile={str(compiled).lower()}", "train.epochs=2"]
    changes += [f"train.batch_size={scope.batch}"]
    config = _config(scope, [*changes, f"launch.device={device.type}"])
    # Unverified: the pixels' digest in a synthetic cohort is no true one.
    images = TrainingImages(open_data(cohort), config)
    clock = _trained(config, images, out, device)
    seconds = clock.last_epoch_s()
    counts = {name: len(rows) for name, rows in images.sets.items()}
    return {
        "status": "measured",
        "epoch_s": seconds,
        "first_epoch_s": clock.ended[1] - clock.ended[0],
        "parts_s": clock.records[-1].parts,
        "metrics_share": clock.records[-1].parts["metrics"] / seconds,
        "peak_memory_bytes": clock.records[-1].peak_memory_bytes,
        "images": {name: counts[name] for name in ("train", "validation")},
        "batch": config.train.batch_size,
        "precision": config.launch.precision,
        "projected_50_epochs_s": PAPER_EPOCHS * seconds,
        "projected": f"{PAPER_EPOCHS} times the one epoch that was measured; not itself measured",
    }


@dataclass(frozen=True, kw_only=True)
class Material:
    """What the training run learns from and is scored with."""

    data: Path | None
    """A cohort; phantoms where there is none."""
    lpips_backbone: Path | None


def full_training(record: Record, scope: Scope, device: torch.device, *, material: Material, seconds: float) -> None:
    """Train U-Net under the shipped protocol for as many epochs as fit into `seconds`, then score it on the test set.

    How many do is measured by a training of two epochs first; the learning rate's schedule then ends with the last.
    """
    deadline = time.perf_counter() + seconds
    with tempfile.TemporaryDirectory() as folder:
        cohort = material.data or _phantoms(Path(folder), scope)
        where = "phantoms: no quality on radiographs follows" if material.data is None else "the given cohort"
        record.put(where, "training", "images_from")
        images = TrainingImages.open(cohort, _config(scope, [f"train.epochs={EPOCHS_AT_LEAST}"]))
        trial = _trained(images.config, images, Path(folder) / "trial", device)
        left = 0.85 * (deadline - time.perf_counter())  # the rest is for scoring, and for what may take longer
        epochs = max(EPOCHS_AT_LEAST, min(scope.most_epochs, int(left / trial.last_epoch_s())))
        config = _config(scope, [f"train.epochs={epochs}", f"launch.device={device.type}"])
        images = TrainingImages(images.data, config)
        began = time.perf_counter()
        out = Path(folder) / "run"
        clock = _trained(config, images, out, device)
        took = time.perf_counter() - began
        last = clock.records[-1]
        record.put(
            {
                "epochs": epochs,
                "images": {name: len(rows) for name, rows in images.sets.items()},
                "seconds": took,
                "validation_psnr_db": last.validation_psnr,
                "parts_s": {part: sum(one.parts[part] for one in clock.records) for part in last.parts},
                "images_per_s": last.images_per_second,
                "peak_memory_bytes": last.peak_memory_bytes,
                "config": config.model_dump(mode="json"),
            },
            *("training", "run"),
        )
        lpips = load_lpips(material.lpips_backbone, download=False) if material.lpips_backbone else None
        perceptual = Perceptual(network=lpips, note="" if lpips else "LPIPS was not computed: no backbone was given.")
        summary = evaluate_run(RunFolder(out), images, perceptual=perceptual, device=device)
        record.put(summary.model_dump(mode="json"), "training", "test")


def _trained(config: RunConfig, images: TrainingImages, out: Path, device: torch.device) -> Clock:
    run = RunFolder.create(out, config)
    run.write_environment({"cohort_digest": images.data.digest}, device=device)
    clock = Clock()
    train(config, images, run, device=device, watcher=clock)
    return clock


def _phantoms(folder: Path, scope: Scope) -> Path:
    write_phantoms(folder / "png", patients=scope.phantoms, follow_ups=2, seed=1, size=scope.size)
    import_radiographs([folder / "png"], folder / "cohort", size=scope.size, shares=parse_shares("60/20/20"))
    return folder / "cohort"


def _config(scope: Scope, changes: Sequence[str]) -> RunConfig:
    return load_config(
        "default",
        [
            f"model.width={scope.width}",
            f"train.batch_size={min(16, scope.batch)}",
            f"launch.prefetch={PREFETCH}",
            *changes,
        ],
    )
