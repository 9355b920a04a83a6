"""What `train`, `evaluate`, `compare` and `demo` share: scoring a run and writing its report."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
import typer

from veilray.cli.ranks import shown_by_lead
from veilray.cohort.cohort import Cohort
from veilray.cohort.release import Release
from veilray.errors import DataError, LpipsUnavailable
from veilray.evaluation.baselines.score import Classical
from veilray.evaluation.compare import compare
from veilray.evaluation.evaluate import evaluate
from veilray.evaluation.panels import restore_panels
from veilray.evaluation.results import Summary, no_mean, read_summary
from veilray.evaluation.scoring import Perceptual
from veilray.evaluation.subject import Subject, open_subject
from veilray.metrics.lpips import load_lpips
from veilray.parallel.group import ALONE, Group, fails_together
from veilray.report.render import render
from veilray.training.data import TrainingImages
from veilray.training.run import RunFolder

NO_LPIPS = "LPIPS was not computed"
OTHER_LPIPS = (
    "LPIPS was computed with other convolutions than torchvision's AlexNet, whose figures it cannot be compared with: "
    "the file of --lpips-backbone has been altered, or is of another training"
)


def perceptual_metric(backbone: Path | None, *, download: bool) -> Perceptual:
    """LPIPS with a given backbone, or torchvision's, fetched where `download` allows it; else why there is none."""
    try:
        network = load_lpips(backbone, download=download)
    except LpipsUnavailable as error:
        return Perceptual(network=None, note=f"{NO_LPIPS}: {error}")
    return Perceptual(network=network, note="" if network.published else OTHER_LPIPS)


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
    missing = next((note for note in group.gather("" if metric.network else metric.note) if note), "")
    return Perceptual(network=None, note=missing) if missing else metric


def evaluate_and_report(
    run: RunFolder,
    images: TrainingImages,
    *,
    split: str,
    perceptual: Perceptual,
    device: torch.device,
    group: Group = ALONE,
    beat: Callable[[], None] = lambda: None,
) -> Path | None:
    """Score a run on a set and write its `report.html`, whose path is returned.

    None where there is nothing to report: the set is too small for a mean with an interval. Of a `group` all ranks
    score, and the lead reports. `beat` is called whenever the scoring gets on.
    """
    with fails_together(group):
        subject = open_subject(run.path)
    score_and_show(
        subject,
        images,
        out=run.path,
        split=split,
        perceptual=perceptual,
        device=device,
        group=group,
        beat=beat,
    )
    return report_on([run.path], images, out=run.path, device=device) if group.is_lead else None


def score_and_show(
    subject: Subject,
    images: TrainingImages,
    *,
    out: Path,
    split: str,
    perceptual: Perceptual,
    device: torch.device,
    classical: Classical | None = None,
    group: Group = ALONE,
    beat: Callable[[], None] = lambda: None,
) -> Summary:
    """Score a network on a set into the folder `out`, with a progress bar; `beat` is called for every batch."""

    @contextmanager
    def show(description: str, total: int) -> Iterator[Callable[[int], None]]:
        # Of a group the lead sees its own share alone.
        with shown_by_lead(group, None if group.joined else total, description, "images") as bar:

            def advance(count: int) -> None:
                beat()
                bar.advance(count)

            yield advance

    return evaluate(
        subject,
        images,
        out=out,
        split=split,
        perceptual=perceptual,
        device=device,
        classical=classical,
        show=show,
        group=group,
    )


def report_on(folders: Sequence[Path], images: TrainingImages, *, out: Path, device: torch.device) -> Path | None:
    """Write `report.html` into the folder `out` on results in folders; None where one of them has no means."""
    report = out / "report.html"
    missing = next(filter(None, (no_mean(read_summary(folder)) for folder in folders)), "")
    if missing:
        typer.echo(f"no report: {missing}", err=True)
        report.unlink(missing_ok=True)  # it would show scores that are no longer there
        return None
    write_report(folders, data=images.data, out=report, device=device)
    return report


def write_report(
    folders: Sequence[Path],
    *,
    data: Cohort | Release | None,
    out: Path,
    device: torch.device,
    notes: Sequence[str] = (),
) -> None:
    """Compare evaluated runs and write the report; without their cohort at hand it has no pictures, and says so.

    `notes` are what readers must know of the data that no run recorded.
    """
    comparison = compare(folders)
    where = data if data is not None else comparison.cohort
    try:
        panels = restore_panels(comparison, data=where, device=device)
    except DataError as error:
        if data is not None:
            raise
        typer.echo(f"no pictures in the report: {error}", err=True)
        panels = []
    render(comparison, panels, out, notes=notes)
