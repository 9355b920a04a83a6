"""What `train`, `evaluate`, `compare` and `demo` share: scoring a run and writing its report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import typer

from veilray.cli.ranks import shown_by_lead
from veilray.errors import DataError, LpipsUnavailable
from veilray.evaluation.compare import compare
from veilray.evaluation.evaluate import Perceptual, evaluate_run
from veilray.evaluation.panels import restore_panels
from veilray.evaluation.results import no_mean
from veilray.metrics.lpips import load_lpips
from veilray.parallel.group import ALONE, Group, fails_together
from veilray.report.render import render
from veilray.training.data import TrainingImages
from veilray.training.run import RunFolder

NO_LPIPS = "LPIPS was not computed"


def perceptual_metric(backbone: Path | None, *, download: bool) -> Perceptual:
    """LPIPS with a given backbone, or torchvision's, fetched where `download` allows it; else why there is none."""
    try:
        return Perceptual(network=load_lpips(backbone, download=download))
    except LpipsUnavailable as error:
        return Perceptual(network=None, note=f"{NO_LPIPS}: {error}")


def shared_metric(backbone: Path | None, *, download: bool, group: Group) -> Perceptual:
    """LPIPS on all ranks, or on none: `perceptual_metric`, which one rank a machine calls before the others."""
    if not group.joined:
        return perceptual_metric(backbone, download=download)
    metric = None
    for turn in (True, False):
        with fails_together(group):
            if (group.local_rank == 0) == turn:
                metric = perceptual_metric(backbone, download=download and turn)
    assert metric is not None  # every rank has had its turn
    missing = next((note for note in group.gather(metric.note) if note), "")
    return Perceptual(network=None, note=missing) if missing else metric


def evaluate_and_report(
    run: RunFolder,
    images: TrainingImages,
    *,
    split: str,
    perceptual: Perceptual,
    device: torch.device,
    group: Group = ALONE,
) -> Path | None:
    """Score a run on a set and write its `report.html`, whose path is returned.

    None where there is nothing to report: the set is too small for a mean with an interval. Of a `group` all ranks
    score, and the lead reports.
    """
    report = run.path / "report.html"
    total = None if group.joined else len(images.sets[split])  # the lead sees its own share alone
    with shown_by_lead(group, total, f"evaluating on {split}", "images") as bar:
        summary = evaluate_run(
            run, images, split=split, perceptual=perceptual, device=device, on_images=bar.advance, group=group
        )
    if not group.is_lead:
        return None
    if no_mean(summary):
        typer.echo(f"no report: {no_mean(summary)}", err=True)
        report.unlink(missing_ok=True)  # it would show scores that are no longer there
        return None
    write_report([run.path], data=str(images.data.path), out=report, device=device)
    return report


def write_report(folders: Sequence[Path], *, data: str | None, out: Path, device: torch.device) -> None:
    """Compare evaluated runs and write the report; without their cohort at hand it has no pictures, and says so."""
    comparison = compare(folders)
    where = data if data is not None else comparison.cohort
    try:
        panels = restore_panels(comparison, data=where, device=device)
    except DataError as error:
        if data is not None:
            raise
        typer.echo(f"no pictures in the report: {error}", err=True)
        panels = []
    render(comparison, panels, out)
