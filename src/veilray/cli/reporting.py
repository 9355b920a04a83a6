"""What `train`, `evaluate`, `compare` and `demo` share: scoring a run and writing its report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import typer

from veilray.cli.progress import progress
from veilray.errors import DataError, LpipsUnavailable
from veilray.evaluation.compare import compare
from veilray.evaluation.evaluate import Perceptual, evaluate_run
from veilray.evaluation.panels import restore_panels
from veilray.evaluation.results import no_mean
from veilray.metrics.lpips import load_lpips
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


def evaluate_and_report(
    run: RunFolder, images: TrainingImages, *, split: str, perceptual: Perceptual, device: torch.device
) -> Path | None:
    """Score a run on a set and write its `report.html`, whose path is returned.

    None where there is nothing to report: the set is too small for a mean with an interval.
    """
    report = run.path / "report.html"
    with progress(len(images.sets[split]), f"evaluating on {split}", "images") as bar:
        summary = evaluate_run(run, images, split=split, perceptual=perceptual, device=device, on_images=bar.advance)
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
