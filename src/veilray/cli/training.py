"""What `train` and `demo` share: a training from configuration to report, followed on the terminal."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import typer
from torch.utils.tensorboard import SummaryWriter

from veilray.cli.progress import progress
from veilray.cli.reporting import evaluate_and_report, perceptual_metric
from veilray.errors import ToldElsewhere, VeilrayError
from veilray.evaluation.evaluate import check_digest
from veilray.models.build import build_model
from veilray.parallel.devices import describe_device, pick_device
from veilray.parallel.group import fails_together
from veilray.parallel.joining import joined
from veilray.parallel.spawn import check_devices
from veilray.parallel.watchdog import GRACE, Watchdog
from veilray.training.agreement import changes, check_agreement, restarted
from veilray.training.config import RunConfig
from veilray.training.data import TrainingImages
from veilray.training.launch import resolved
from veilray.training.loop import Outcome, train
from veilray.training.objectives.perceptual import with_pinned_backbone
from veilray.training.run import EpochRecord, RunFolder
from veilray.training.setup import Setup, check_batch, choose_setup, facts, statements


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

    def begin(self, *, images: int) -> None:
        """Move the bar to where the training goes on."""
        self._bar.begin_at(images)

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


def check_launch(config: RunConfig, ranks: int, *, data: Path, out: Path, resume: bool) -> torch.device:
    """Find wrong usage before any rank is started; returns the device of the ranks.

    Raises UsageError or CohortError as the ranks would; only damaged pixels are left for them to find.
    """
    device = pick_device(config.launch.device)
    check_devices(ranks, device, shared=config.launch.share_device)
    check_batch(config, ranks)
    images = TrainingImages.open(data, with_pinned_backbone(resolved(config, device)), verify=False)
    if resume:
        RunFolder.resume(out, images.config)
    else:
        RunFolder.check_new(out)
    return device


def run_training(
    config: RunConfig,
    *,
    data: Path,
    out: Path,
    resume: bool,
    lpips_backbone: Path | None,
    evaluate: bool = True,
    devices: int | None = None,
) -> None:
    """Train, score on the validation set and write the report; one rank of a group where torchrun started it.

    `evaluate`: false leaves out scores and report. `devices`: how many `dp` is to use. Raises VeilrayError where the
    training was interrupted.
    """
    device, launch = pick_device(config.launch.device), config.launch
    with (
        Watchdog(timeout=launch.timeout_seconds + GRACE) as watchdog,
        joined(device, timeout=launch.timeout_seconds, shared=launch.share_device) as group,
    ):
        watchdog.watch(group)
        with fails_together(group):
            device = group.device(device, shared=launch.share_device)
            setup = choose_setup(config, group, device, devices=devices)
            # One rank a machine reads every pixel; all compare the digest below.
            config = with_pinned_backbone(resolved(config, device))
            images = TrainingImages.open(data, config, verify=group.local_rank == 0)
        config = images.config  # with the noise of the release, where it is one
        check_agreement(group, config=config, digest=images.data.digest)
        run, before = RunFolder(out), []
        with fails_together(group):
            if group.is_lead:
                run = _opened(out, config, images, setup, data=data, resume=resume, device=device)
                before = run.epochs()
                _announce(images, run, setup, device=device)
        with TerminalWatcher(run, config, images) if group.is_lead else nullcontext(Silence()) as watcher:
            outcome = train(config, images, run, device=device, watcher=watcher, setup=setup, beat=watchdog.beat)
        if outcome.interrupted:
            if not group.is_lead:
                raise ToldElsewhere(VeilrayError.exit_status)
            raise VeilrayError(
                f"stopped after a checkpoint; go on with: veilray train --resume --data {data} --out {out}"
            )
    if not group.is_lead:
        return
    typer.echo(_ending(outcome))
    if not evaluate:
        return
    if before and run.epochs() == before and (run.path / "report.html").exists():
        return  # it was finished already: its scores, of the test set perhaps, stay
    metric = perceptual_metric(lpips_backbone, download=False)
    report = evaluate_and_report(run, images, split="validation", perceptual=metric, device=device)
    if report is not None:
        typer.echo(f"report on the validation images: {report}")


def _opened(
    out: Path,
    config: RunConfig,
    images: TrainingImages,
    setup: Setup,
    *,
    data: Path,
    resume: bool,
    device: torch.device,
) -> RunFolder:
    """The run folder, new or gone on with; gone on with by itself where a launcher has restarted this process."""
    again = resume or ((out / "config.toml").exists() and restarted(RunFolder(out)))
    run = RunFolder.resume(out, config) if again else RunFolder.create(out, config)
    if (run.path / "environment.json").exists():
        check_digest(run, images)
        for line in changes(run, setup):
            typer.echo(line, err=True)
    else:  # also where a kill came before it was written
        run.write_environment({**_facts(images, data), **facts(config, setup)}, device=device)
    return run


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


def _announce(images: TrainingImages, run: RunFolder, setup: Setup, *, device: torch.device) -> None:
    environment = run.environment()
    counts = ", ".join(f"{len(rows)} {name}" for name, rows in images.sets.items())
    typer.echo(f"{images.config.model.name} with {environment['parameters']:,} parameters on {describe_device(device)}")
    typer.echo(f"images: {counts}; arithmetic: {images.config.launch.precision}")
    for line in statements(images.config, setup, device):
        typer.echo(line)
    if environment["shared_patients"]:
        typer.echo(
            f"warning: {environment['shared_patients']} patients have images in more than one set (split.rule = "
            f"'{images.config.split.rule}'), so that the test figures flatter the network",
            err=True,
        )


def _ending(outcome: Outcome) -> str:
    early = "stopped early" if outcome.stopped_early else "training done"
    return f"{early}; lowest validation loss {outcome.best_loss:.5f} after epoch {outcome.best_epoch}"
