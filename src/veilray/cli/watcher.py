"""Who follows a training: the terminal and TensorBoard on the lead, nobody on the other ranks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch

from veilray.cli.progress import progress
from veilray.training.config import RECORRUPTION, Objective, RunConfig
from veilray.training.data import TrainingImages
from veilray.training.run import EpochRecord, RunFolder

if TYPE_CHECKING:
    from torch.utils import tensorboard


def validation_name(objective: Objective) -> str:
    """What the number is called by which a training chooses its weights: no loss where no clean image is compared."""
    return "validation loss" if objective == "supervised" else "criterion on noisy validation images"


def psnr_name(objective: Objective) -> str:
    """What validation PSNR is called; where noise is added, it is not that of the average which `denoise` takes."""
    return "validation PSNR of one draw" if objective in RECORRUPTION else "validation PSNR"


class TerminalWatcher:
    """Follows a training with a progress bar, a line an epoch, TensorBoard, and an entry in `environment.json`.

    `life`: what that entry is to say of how the run is trained from here on; it is made with the first step.
    """

    def __init__(
        self,
        run: RunFolder,
        config: RunConfig,
        images: TrainingImages,
        *,
        life: Mapping[str, Any],
        device: torch.device,
    ) -> None:
        from torch.utils import tensorboard  # half a second, which ranks that are silent need not wait

        self._run, self._device = run, device
        self._life: Mapping[str, Any] | None = life
        self._epochs = config.train.epochs
        self._name = validation_name(images.choice.objective)
        self._psnr_name = psnr_name(images.choice.objective)
        total = images.images_before(config.train.epochs * images.steps_per_epoch())
        self._progress = progress(total, "training", "images")
        self._open_events = partial(tensorboard.SummaryWriter, str(run.path / "tensorboard"))
        self._events: tensorboard.SummaryWriter | None = None

    def __enter__(self) -> TerminalWatcher:
        self._bar = self._progress.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.__exit__(kind, error, trace)
        if self._events is not None:
            self._events.close()

    def begin(self, *, images: int) -> None:
        """Move the bar to where the training goes on."""
        self._bar.begin_at(images)

    def step(self, *, step: int, images: int, loss: float) -> None:
        """Move the bar; the loss goes to TensorBoard."""
        if self._life is not None:
            self._run.begin_life(self._life, step=step - 1, device=self._device)
            self._life = None
        self._bar.advance(images)
        if self._events is None:  # what a life before this one wrote after its last checkpoint is shown no more
            self._events = self._open_events(purge_step=step)
        self._events.add_scalar("train/loss", loss, step)

    def epoch(self, record: EpochRecord) -> None:
        """Print a line and record the curves."""
        for name in ("train_loss", "validation_loss", "validation_psnr", "learning_rate", "images_per_second"):
            value = asdict(record)[name]
            if value is not None and self._events is not None:
                self._events.add_scalar(f"epoch/{name}", value, record.step)
        psnr = "" if record.validation_psnr is None else f", {self._psnr_name} {record.validation_psnr:.2f} dB"
        self._bar.say(
            f"epoch {record.epoch}/{self._epochs}: training loss {record.train_loss:.5f}, {self._name} "
            f"{record.validation_loss:.5f}{psnr}, "
            f"{record.images_per_second:.1f} images/s"
        )

    def note(self, message: str) -> None:
        """Print a line."""
        self._bar.say(message)


class Silence:
    """Follows a training on the ranks that do not speak to the user."""

    def begin(self, *, images: int) -> None:
        """Say nothing."""

    def step(self, *, step: int, images: int, loss: float) -> None:
        """Say nothing."""

    def epoch(self, record: EpochRecord) -> None:
        """Say nothing."""

    def note(self, message: str) -> None:
        """Say nothing."""
