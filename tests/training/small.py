"""What the tests of training share: small images, a small configuration, a watcher that keeps what it sees."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from veilray.training.config import RunConfig
from veilray.training.data import TrainingImages
from veilray.training.loop import Outcome, train
from veilray.training.run import EpochRecord, RunFolder


def write_images(folder: Path, *, patients: int, size: int = 32) -> None:
    """Smooth images under NIH's names."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for patient in range(patients):
        for follow_up in range(2):
            coarse = Image.fromarray(generator.integers(0, 256, (6, 6), dtype=np.uint8))
            coarse.resize((size, size), Image.Resampling.BICUBIC).save(folder / f"{patient:08d}_{follow_up:03d}.png")


class Recorder:
    """Keeps what a training reports; may act on a step."""

    def __init__(self, on_step: Callable[[int], None] = lambda step: None) -> None:
        self.losses: list[float] = []
        self.records: list[EpochRecord] = []
        self.notes: list[str] = []
        self._on_step = on_step

    def begin(self, *, images: int) -> None:
        self.images_before = images

    def step(self, *, step: int, images: int, loss: float) -> None:
        self.losses.append(loss)
        self._on_step(step)

    def epoch(self, record: EpochRecord) -> None:
        self.records.append(record)

    def note(self, message: str) -> None:
        self.notes.append(message)


def small_config(**changes: dict[str, object]) -> RunConfig:
    """A configuration that trains in a second; `changes` go into its sections."""
    values: dict[str, dict[str, object]] = {
        "model": {"width": 4, "depth": 3},
        "train": {"epochs": 2, "batch_size": 8, "learning_rate": 1e-2, "ema_decay": 0.5},
        "launch": {"device": "cpu", "precision": "fp32"},
    }
    for section, keys in changes.items():
        values.setdefault(section, {}).update(keys)
    return RunConfig.model_validate(values)


def train_here(config: RunConfig, data: Path, out: Path, recorder: Recorder | None = None) -> Outcome:
    """Train in a run folder, which is made unless it is there."""
    images = TrainingImages.open(data, config)
    if (out / "config.toml").exists():
        run = RunFolder.resume(out, config)
    else:
        run = RunFolder.create(out, config)
        run.write_environment({"cohort_digest": images.data.digest}, device=torch.device("cpu"))
    return train(config, images, run, device=torch.device("cpu"), watcher=recorder or Recorder())
