"""What `train` and `demo` share: a training from configuration to report, followed on the terminal."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

import typer
from torch.utils.tensorboard import SummaryWriter

from veilray.cli.progress import progress
from veilray.cli.reporting import evaluate_and_report, perceptual_metric
from veilray.errors import VeilrayError
from veilray.evaluation.evaluate import check_digest
from veilray.models.build import build_model
from veilray.parallel.devices import describe_device, pick_device
from veilray.training.config import RunConfig
from veilray.training.data import TrainingImages
from veilray.training.launch import resolved
from veilray.training.loop import Outcome, train
from veilray.training.run import EpochRecord, RunFolder


class TerminalWatcher:
    """Follows a training with a progress bar, a line an epoch, and TensorBoard."""

    def __init__(self, run: RunFolder, config: RunConfig, images: TrainingImages) -> None:
        self._epochs = config.train.epochs
        self._images_per_epoch = len(images.sets["train"])
        self._progress = progress(self._epochs * self._images_per_epoch, "training", "images")
        self._events = SummaryWriter(str(run.path / "tensorboard"))

    def __enter__(self) -> TerminalWatcher:
        self._bar = self._progress.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.__exit__(kind, error, trace)
        self._events.close()

    def step(self, *, step: int, images: int, loss: float) -> None:
        """Move the bar; the loss goes to TensorBoard."""
        self._bar.advance(images)
        self._events.add_scalar("train/loss", loss, step)

    def epoch(self, record: EpochRecord) -> None:
        """Print a line and record the curves."""
        for name in ("train_loss", "validation_loss", "validation_psnr", "learning_rate", "images_per_second"):
            self._events.add_scalar(f"epoch/{name}", asdict(record)[name], record.step)
        self._bar.say(
            f"epoch {record.epoch}/{self._epochs}: training loss {record.train_loss:.5f}, validation loss "
            f"{record.validation_loss:.5f}, validation PSNR {record.validation_psnr:.2f} dB, "
            f"{record.images_per_second:.1f} images/s"
        )

    def note(self, message: str) -> None:
        """Print a line."""
        self._bar.say(message)


def run_training(config: RunConfig, *, data: Path, out: Path, resume: bool, lpips_backbone: Path | None) -> None:
    """Train, score on the validation set and write the report. Raises VeilrayError where it was interrupted."""
    device = pick_device(config.launch.device)
    images = TrainingImages.open(data, resolved(config, device))
    config = images.config  # with the noise of the release, where it is one
    run = RunFolder.resume(out, config) if resume else RunFolder.create(out, config)
    if (run.path / "environment.json").exists():
        check_digest(run, images)
    else:  # also where a kill came before it was written
        run.write_environment(_facts(images, data), device=device)
    _announce(images, run, device=describe_device(device))
    before = run.epochs()
    with TerminalWatcher(run, config, images) as watcher:
        outcome = train(config, images, run, device=device, watcher=watcher)
    if outcome.interrupted:
        raise VeilrayError(f"stopped after a checkpoint; go on with: veilray train --resume --data {data} --out {out}")
    typer.echo(_ending(outcome))
    if before and run.epochs() == before and (run.path / "report.html").exists():
        return  # it was finished already: its scores, of the test set perhaps, stay
    metric = perceptual_metric(lpips_backbone, download=False)
    report = evaluate_and_report(run, images, split="validation", perceptual=metric, device=device)
    if report is not None:
        typer.echo(f"report on the validation images: {report}")


def _facts(images: TrainingImages, data: Path) -> dict[str, Any]:
    """What `environment.json` says of the data."""
    counts = {f"n_{name}": len(rows) for name, rows in images.sets.items()}
    counts |= {f"n_{name}_patients": count for name, count in images.patients().items()}
    return {
        "cohort": str(data),
        "cohort_digest": images.data.digest,
        **counts,
        "shared_patients": images.shared_patients(),
        "patients_unknown": images.data.record.patients_unknown,
        "parameters": sum(parameter.numel() for parameter in build_model(images.config.model).parameters()),
    }


def _announce(images: TrainingImages, run: RunFolder, *, device: str) -> None:
    environment = run.environment()
    counts = ", ".join(f"{len(rows)} {name}" for name, rows in images.sets.items())
    typer.echo(f"{images.config.model.name} with {environment['parameters']:,} parameters on {device}")
    typer.echo(f"images: {counts}; arithmetic: {images.config.launch.precision}")
    if environment["shared_patients"]:
        typer.echo(
            f"warning: {environment['shared_patients']} patients have images in more than one set (split.rule = "
            f"'{images.config.split.rule}'), so that the test figures flatter the network",
            err=True,
        )


def _ending(outcome: Outcome) -> str:
    early = "stopped early" if outcome.stopped_early else "training done"
    return f"{early}; lowest validation loss {outcome.best_loss:.5f} after epoch {outcome.best_epoch}"
