"""A training from configuration to report, followed on the terminal."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import typer

from veilray.cli.ranks import rank_device
from veilray.cli.watcher import Silence, TerminalWatcher, validation_name
from veilray.cohort.open import open_data
from veilray.cohort.release import Release
from veilray.errors import DiskFullError, StoppedError, ToldElsewhere, TrainingError, VeilrayError
from veilray.evaluation.subject import check_data, open_subject
from veilray.files import sha256_file
from veilray.models.build import build_model
from veilray.parallel.devices import describe_device, is_out_of_memory, keep_freed_memory, pick_device
from veilray.parallel.group import ALONE, Group, fails_together
from veilray.parallel.joining import joined, met
from veilray.parallel.spawn import check_devices
from veilray.parallel.watchdog import GRACE, Watchdog
from veilray.training.agreement import changes, check_agreement, restarted
from veilray.training.config import RunConfig
from veilray.training.data import TrainingImages
from veilray.training.launch import resolved
from veilray.training.loop import Outcome, train
from veilray.training.objectives.perceptual import backbone_warnings
from veilray.training.run import RunFolder
from veilray.training.setup import Setup, check_batch, choose_setup, facts, life, statements
from veilray.training.start import with_pinned_files
from veilray.training.suspicion import noise_warnings

NO_SCORES = "no scores: the data hold no clean images; evaluate the model where the originals are"


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Where the images of a training are."""

    data: Path
    clean: Path | None = None
    """Clean public images beside a release that holds none."""
    second: Path | None = None
    """A second release of the same images."""

    def open(self, config: RunConfig, device: torch.device, *, verify: bool) -> TrainingImages:
        """Open all of them, with the configuration as files, data and device decide it; see `TrainingImages.open`."""
        pinned = with_pinned_files(config)
        images = TrainingImages.open(self.data, pinned, clean=self.clean, second=self.second, verify=verify)
        images.config = resolved(images.config, device)  # once the objective is known
        return images


def check_launch(config: RunConfig, ranks: int, *, data: Sources, out: Path, resume: bool) -> torch.device:
    """Find wrong usage before any rank is started; returns the device of the ranks.

    Raises UsageError or CohortError as the ranks would; only damaged pixels are left for them to find.
    """
    device = pick_device(config.launch.device)
    check_devices(ranks, device, shared=config.launch.share_device)
    check_batch(config, ranks)
    if resume:
        _check_begun(out, data)
    images = data.open(config, device, verify=False)
    if resume:
        RunFolder.resume(out, images.config)
    else:
        RunFolder.check_new(out)
    return device


def run_training(
    read: Callable[[Group], RunConfig],
    *,
    data: Sources,
    out: Path,
    resume: bool,
    lpips_backbone: Path | None,
    evaluate: bool = True,
    devices: int | None = None,
) -> None:
    """Train, score on the validation set and write the report; one rank of a group where torchrun started it.

    `read` gives the configuration to ranks that have met, and raises on all or on none. `evaluate`: false leaves out
    scores and report. `devices`: how many `dp` is to use. Raises StoppedError where the training was interrupted.
    """
    with met() as ranks:
        config = read(ranks)
        with fails_together(ranks):
            device = rank_device(ranks, pick_device(config.launch.device), shared=config.launch.share_device)
            setup = choose_setup(config, ranks, device, devices=devices)
            if device.type == "cpu":
                keep_freed_memory()
            if resume:
                _check_begun(out, data)
            # One rank a machine reads every pixel, while no exchange can time out; all compare the digest below.
            images = data.open(config, device, verify=ranks.local_rank == 0)
            doubts = [*noise_warnings(images), *backbone_warnings(images.config)] if ranks.is_lead else []
        # Before they join: ranks that differ in their devices would wait in vain for each other's groups.
        check_agreement(ranks, config=images.config, digest=images.data.digest)
        launch = images.config.launch
        with Watchdog(timeout=launch.timeout_seconds + GRACE) as watchdog:
            watchdog.watch(ranks)
            with joined(device, timeout=launch.timeout_seconds, shared=launch.share_device, ranks=ranks) as group:
                setup, run, before = replace(setup, group=group), RunFolder(out), []
                with fails_together(group):
                    if group.is_lead:
                        run = _opened(out, images, setup, data=data.data, resume=resume, device=device)
                        before = run.epochs()
                        _announce(images, run, setup, doubts, device=device)
                outcome = _trained(images, run, setup, device=device, beat=watchdog.beat)
                if group.is_lead:
                    typer.echo(_ending(outcome, validation_name(images.choice.objective)))
                # What was finished already keeps its scores, of the test set perhaps.
                finished = bool(before) and run.epochs() == before and (run.path / "report.html").exists()
                if not group.broadcast(evaluate and not finished):  # as the lead was told
                    return
                if images.holds_clean:
                    _score(run, images, group, device=device, backbone=lpips_backbone, beat=watchdog.beat)
                elif group.is_lead:
                    typer.echo(NO_SCORES)


def _trained(
    images: TrainingImages, run: RunFolder, setup: Setup, *, device: torch.device, beat: Callable[[], None]
) -> Outcome:
    """Train to the end; StoppedError where it was interrupted, TrainingError where memory ran out."""
    config, group = images.config, setup.group
    again = f"go on with: veilray train --resume --data {images.data.path} --out {run.path}"
    following = (
        TerminalWatcher(run, config, images, life=life(config, setup), device=device)
        if group.is_lead
        else nullcontext(Silence())
    )
    try:
        with following as watcher:
            outcome = train(config, images, run, device=device, watcher=watcher, setup=setup, beat=beat)
    except DiskFullError as error:
        raise VeilrayError(f"{error.fault}; free some space, then {again}") from None
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        where = f" of rank {group.rank} on {socket.gethostname()}" if group.world_size > 1 else ""
        raise TrainingError(
            f"the memory{where} is too small ({describe_device(device)}): lower train.batch_size, or set "
            "train.accumulate or train.crop"
        ) from error
    if not outcome.interrupted:
        return outcome
    if not group.is_lead:
        raise ToldElsewhere(VeilrayError.exit_status)
    raise StoppedError(f"stopped after a checkpoint; {again}")


def _score(
    run: RunFolder,
    images: TrainingImages,
    group: Group,
    *,
    device: torch.device,
    backbone: Path | None,
    beat: Callable[[], None],
) -> None:
    """Score on the validation set and report: on all ranks where all see the run folder, else on the lead."""
    # Drawing and statistics take seconds to load, for which no rank need wait before it trains.
    from veilray.cli.reporting import evaluate_and_report, shared_metric

    files = (run.path / "config.toml", run.best_weights)
    seen = group.gather([sha256_file(path) if path.is_file() else "" for path in files])
    if any(one != seen[0] for one in seen):
        if not group.is_lead:
            return
        typer.echo(f"rank 0 scores alone: not all ranks see {run.path}", err=True)
        group = ALONE
    metric = shared_metric(backbone, download=False, group=group)
    report = evaluate_and_report(
        run, images, split="validation", perceptual=metric, device=device, group=group, beat=beat
    )
    if report is not None:
        typer.echo(f"report on the validation images: {report}")


def _check_begun(out: Path, data: Sources) -> None:
    """CohortError where a run to go on with was begun on other data, before what else may be wrong with these."""
    if (out / "environment.json").exists():
        check_data(open_subject(out), open_data(data.data))


def _opened(
    out: Path,
    images: TrainingImages,
    setup: Setup,
    *,
    data: Path,
    resume: bool,
    device: torch.device,
) -> RunFolder:
    """The run folder, new or gone on with; gone on with by itself where a launcher has restarted this process."""
    again = resume or ((out / "config.toml").exists() and restarted(RunFolder(out), setup.group))
    if not again:
        RunFolder.check_new(out)
        setup.group.begin()  # before there is anything: a kill may come in between
    run = RunFolder.resume(out, images.config) if again else RunFolder.create(out, images.config)
    if (run.path / "environment.json").exists():
        check_data(open_subject(run.path), images.data)
        for line in changes(run, images.config, setup):
            typer.echo(line, err=True)
    else:  # also where a kill came before it was written
        run.write_environment({**_facts(images, data), **facts(images.config, setup)}, device=device)
    return run


def _facts(images: TrainingImages, data: Path) -> dict[str, Any]:
    """What `environment.json` says of the data."""
    counts = {f"n_{name}": len(rows) for name, rows in images.sets.items()}
    counts |= {f"n_{name}_patients": count for name, count in images.patients().items()}
    return {
        "cohort": str(data),
        "cohort_digest": images.data.digest,
        "release_id": images.data.record.release_id if isinstance(images.data, Release) else None,
        **counts,
        "n_public": images.public_images(),
        "shared_patients": images.shared_patients(),
        "patients_unknown": images.data.record.patients_unknown,
        "parameters": sum(parameter.numel() for parameter in build_model(images.config.model).parameters()),
    }


def _announce(images: TrainingImages, run: RunFolder, setup: Setup, doubts: list[str], *, device: torch.device) -> None:
    """What the user is told before the first step; `doubts`: of the noise that a release states."""
    environment = run.environment()
    counts = ", ".join(f"{len(rows)} {name}" for name, rows in images.sets.items())
    typer.echo(f"{images.config.model.name} with {environment['parameters']:,} parameters on {describe_device(device)}")
    typer.echo(f"images: {counts}; arithmetic: {images.config.launch.precision}")
    if start := images.config.train.start:
        typer.echo(f"begins from the weights of {start} (SHA-256 {images.config.train.start_sha256[:12]}...)")
    choice = images.choice
    if choice.objective != "supervised":
        typer.echo(f"objective: {choice.objective}, because {choice.why}; train.loss has no effect")
    if public := images.public_images():
        share = images.config.train.clean_share
        typer.echo(f"beside them {public} clean public images, {share:.0%} of each batch, by squared error")
    for line in doubts:
        typer.echo(line, err=True)
    for line in statements(images.config, setup, device):
        typer.echo(line)
    if environment["shared_patients"]:
        typer.echo(
            f"warning: {environment['shared_patients']} patients have images in more than one set (split.rule = "
            f"'{images.config.split.rule}'), so that the test figures flatter the network",
            err=True,
        )


def _ending(outcome: Outcome, name: str) -> str:
    early = "stopped early" if outcome.stopped_early else "training done"
    return f"{early}; lowest {name} {outcome.best_loss:.5f} after epoch {outcome.best_epoch}"
