"""veilray evaluate: score a network on a set it was not trained on, at its own noise or at others."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from veilray.cli.options import BACKBONE
from veilray.errors import UsageError

if TYPE_CHECKING:
    import torch

    from veilray.evaluation.baselines.score import Classical
    from veilray.evaluation.results import Summary
    from veilray.evaluation.subject import Subject
    from veilray.obfuscation.config import NoiseConfig
    from veilray.training.data import TrainingImages


def evaluate_command(
    run: Annotated[
        str, typer.Argument(help="Run folder, opened model, or the name of a model that ships.", show_default=False)
    ],
    data: Annotated[Path, typer.Option(help="The cohort or release it was trained on.", show_default=False)],
    originals: Annotated[
        Path | None,
        typer.Option(help="At Site One: the cohort that the release in --data was made from.", show_default=False),
    ] = None,
    split: Annotated[Literal["test", "validation"], typer.Option(help="Set to score.")] = "test",
    methods: Annotated[
        str | None,
        typer.Option(help="Classical methods to score too, as bm3d,nlm,tv,wavelet or bm3d-naive.", show_default=False),
    ] = None,
    std: Annotated[
        str | None,
        typer.Option(help="Score at these noise levels, as 0.1,0.2,0.3, each on its own.", show_default=False),
    ] = None,
    mean: Annotated[
        float | None, typer.Option(help="With --std: mean of the noise; left out, the training's.", show_default=False)
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the results; left out, the run's, with --std RUN/levels.", show_default=False),
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(help="File of classical results that are done already, for runs to share.", show_default=False),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Processes for classical methods; left out, one a core.", show_default=False),
    ] = None,
    lpips_backbone: Annotated[Path | None, BACKBONE] = None,
    download: Annotated[
        bool, typer.Option("--download/--no-download", help="Whether LPIPS may fetch torchvision's AlexNet (233 MB).")
    ] = True,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
) -> None:
    """Score a network, image by image, and write a report; under torchrun the ranks share the images out.

    Classical methods are tuned on validation images and computed on all cores. LPIPS takes its AlexNet from
    --lpips-backbone, else downloads torchvision's; where neither works it is left out, and the report says so.

    Of a run on a release without clean images it prints what can be told from noisy ones, by which runs compare.
    """
    from veilray.cli.ranks import rank_device, working_group
    from veilray.cli.reporting import report_on, score_and_show, shared_metric
    from veilray.evaluation.levels import at_noise
    from veilray.evaluation.subject import open_images, open_subject
    from veilray.parallel.devices import keep_freed_memory, pick_device
    from veilray.parallel.group import fails_together
    from veilray.training.data import TrainingImages

    with working_group() as group:
        with fails_together(group):
            subject, where = open_subject(run), rank_device(group, pick_device(device))
            if where.type == "cpu":
                keep_freed_memory()
            target = _target(subject, out, levels=std is not None)
            classical = _classical(
                methods, cache or _cache(target, levels=std is not None), workers, shared=group.joined
            )
            noises = _noises(std, mean, subject)
            # One rank a machine reads every pixel.
            images = open_images(subject, data, originals=originals, verify=group.local_rank == 0)
            if subject.kind == "run" and not images.holds_clean and classical is None and not noises:
                if group.is_lead:
                    _print_criterion(subject, images, where)
                return
            parts = {target: images}
            if noises:
                _check_drawn(images)
                parts = {
                    folder: TrainingImages(images.data, at_noise(subject.config, noise))
                    for folder, noise in _folders(target, noises).items()
                }
        metric = shared_metric(lpips_backbone, download=download, group=group)
        for folder, part in parts.items():
            summary = score_and_show(
                subject,
                part,
                out=folder,
                split=split,
                perceptual=metric,
                device=where,
                classical=classical,
                group=group,
            )
            if group.is_lead:
                _print(subject, summary, told=bool(noises))
        if group.is_lead:
            report = report_on(list(parts), images, out=target, device=where)
            if report is not None:
                typer.echo(f"report: {report}")


def _target(subject: Subject, out: Path | None, *, levels: bool) -> Path:
    if out is not None:
        if (
            subject.folder is not None
            and subject.kind == "opened"
            and out.resolve().is_relative_to(subject.folder.resolve())
        ):
            raise UsageError(f"--out {out} lies inside the model that was sent; name a folder outside it")
        return out
    if subject.kind != "run" or subject.folder is None:
        what = "ships" if subject.kind == "shipped" else "was sent"
        raise UsageError(f"--out is missing: name a folder for the results of a model that {what}")
    return subject.folder / "levels" if levels else subject.folder


def _cache(target: Path, *, levels: bool) -> Path:
    # One for all levels: what is in it says at which noise it was computed.
    return (target if levels else target / "evaluation") / "classical.jsonl"


def _classical(methods: str | None, cache: Path, workers: int | None, *, shared: bool) -> Classical | None:
    from veilray.evaluation.baselines.methods import licence_notice, parse_methods
    from veilray.evaluation.baselines.score import Classical
    from veilray.parallel.workers import available_cores

    if methods is None:
        return None
    if shared:
        raise UsageError("--methods uses all cores of one machine from one process: run this command without torchrun")
    chosen = parse_methods(methods)
    if licence_notice(chosen):
        typer.echo(licence_notice(chosen), err=True)
    return Classical(methods=chosen, cache=cache, workers=workers or available_cores())


def _noises(std: str | None, mean: float | None, subject: Subject) -> list[NoiseConfig]:
    from veilray.evaluation.levels import parse_levels

    if std is None:
        if mean is not None:
            raise UsageError("--mean needs --std: say at which noise levels to score")
        return []
    return parse_levels(std, mean=mean, trained=subject.config.noise)


def _folders(target: Path, noises: list[NoiseConfig]) -> dict[Path, NoiseConfig]:
    from veilray.evaluation.levels import level_name

    return {target / level_name(noise): noise for noise in noises}


def _check_drawn(images: object) -> None:
    from veilray.cohort.cohort import Cohort
    from veilray.training.data import TrainingImages

    assert isinstance(images, TrainingImages)
    if not isinstance(images.data, Cohort):
        raise UsageError(f"{images.data.path} is a release, whose images have their noise: leave --std out")


def _print_criterion(subject: Subject, images: TrainingImages, device: torch.device) -> None:
    from veilray.evaluation.criterion import noisy_criterion
    from veilray.inference.denoiser import Denoiser

    denoiser = Denoiser.load(subject.source, device=device.type, precision="fp32")
    value = noisy_criterion(denoiser, images, device)
    typer.echo(
        f"criterion on {len(images.sets['validation'])} noisy validation images: {value:.6g} "
        f"({images.choice.objective}; smaller is better, among networks on this release)"
    )
    typer.echo("scores need the originals: name their cohort with --originals, or have the model scored where they are")


def _print(subject: Subject, summary: Summary, *, told: bool) -> None:
    from veilray.evaluation.baselines.methods import METHODS
    from veilray.evaluation.results import FEW_PATIENTS, MODEL, NOISY

    at = f" at noise {summary.noise.std_text}, mean {summary.noise.mean_text}" if told else ""
    typer.echo(
        f"{summary.n_images} {summary.split} images of {summary.n_patients} patients{at}, 95 % intervals by patient"
    )
    names = {NOISY: "noisy input", MODEL: subject.title}
    for method, metrics in summary.methods.items():
        values = {key: value for key, value in metrics.items() if value is not None}
        figures = ", ".join(f"{key} {v.mean:.4g} [{v.low:.4g}, {v.high:.4g}]" for key, v in values.items())
        # A figure of speed is for comparing: alone it would only make two outputs differ.
        core = summary.core_seconds_per_image.get(method) if summary.model_minus else None
        if figures:  # a set of one patient has no mean
            name = names.get(method) or METHODS[method].title
            typer.echo(f"{name}: {figures}" + (f", {core:.3g} s an image on one core" if core is not None else ""))
    for method, gains in summary.model_minus.items():
        gain = gains.get("psnr")
        if gain is not None:
            over = f"{subject.title} minus {METHODS[method].title}"
            typer.echo(f"{over}: psnr {gain.mean:+.4g} [{gain.low:+.4g}, {gain.high:+.4g}]")
    if 1 < summary.n_patients < FEW_PATIENTS:
        typer.echo(f"Only {summary.n_patients} patients: intervals from so few tend to be too narrow.")
    for note in summary.notes:
        typer.echo(note)
