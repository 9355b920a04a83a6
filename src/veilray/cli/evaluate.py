"""veilray evaluate: score a run on a set it was not trained on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from veilray.cli.options import BACKBONE

if TYPE_CHECKING:
    from veilray.training.run import RunFolder


def evaluate_command(
    run: Annotated[Path, typer.Argument(help="Run folder.", show_default=False)],
    data: Annotated[Path, typer.Option(help="The cohort or release it was trained on.", show_default=False)],
    split: Annotated[Literal["test", "validation"], typer.Option(help="Set to score.")] = "test",
    lpips_backbone: Annotated[Path | None, BACKBONE] = None,
    download: Annotated[
        bool, typer.Option("--download/--no-download", help="Whether LPIPS may fetch torchvision's AlexNet (233 MB).")
    ] = True,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
) -> None:
    """Score a run, image by image, and write its report; under torchrun the ranks share the images out.

    LPIPS takes its AlexNet from --lpips-backbone, else downloads torchvision's; where neither works it is left out,
    and the report says so.
    """
    from veilray.cli.ranks import rank_device, working_group
    from veilray.cli.reporting import evaluate_and_report, shared_metric
    from veilray.evaluation.evaluate import check_digest
    from veilray.parallel.devices import pick_device
    from veilray.parallel.group import fails_together
    from veilray.training.data import TrainingImages
    from veilray.training.run import RunFolder

    with working_group() as group:
        with fails_together(group):
            folder, where = RunFolder(run), rank_device(group, pick_device(device))
            # One rank a machine reads every pixel.
            images = TrainingImages.open(data, folder.config(), verify=group.local_rank == 0)
            check_digest(folder, images)
        metric = shared_metric(lpips_backbone, download=download, group=group)
        report = evaluate_and_report(folder, images, split=split, perceptual=metric, device=where, group=group)
    if group.is_lead:
        _print(folder, split, report)


def _print(folder: RunFolder, split: str, report: Path | None) -> None:
    from veilray.evaluation.results import MODEL, NOISY, read_summary

    summary = read_summary(folder.path)
    typer.echo(f"{summary.n_images} {split} images of {summary.n_patients} patients, 95 % intervals by patient")
    for method, name in ((NOISY, "noisy input"), (MODEL, folder.config().model.name)):
        values = {key: value for key, value in summary.methods[method].items() if value is not None}
        figures = ", ".join(f"{key} {v.mean:.4g} [{v.low:.4g}, {v.high:.4g}]" for key, v in values.items())
        if figures:  # a set of one patient has no mean
            typer.echo(f"{name}: {figures}")
    for note in summary.notes:
        typer.echo(note)
    if report is not None:
        typer.echo(f"report: {report}")
