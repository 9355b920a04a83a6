"""veilray train: one training run, with its evaluation on the validation set and its report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from veilray.cli.options import BACKBONE
from veilray.errors import UsageError


def train_command(
    config: Annotated[
        str | None, typer.Argument(help="Configuration file, or a shipped one: `default`, `paper`.")
    ] = None,
    data: Annotated[Path, typer.Option(help="Cohort, or release with pairs.", show_default=False)] = ...,  # type: ignore[assignment]
    out: Annotated[Path, typer.Option(help="Run folder to make.", show_default=False)] = ...,  # type: ignore[assignment]
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Override, such as train.epochs=5; may be repeated.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    devices: Annotated[
        int | None,
        typer.Option(help="Train on this many devices of this machine, one process each.", show_default=False),
    ] = None,
    lpips_backbone: Annotated[Path | None, BACKBONE] = None,
    evaluate: Annotated[
        bool, typer.Option("--evaluate/--no-evaluate", help="Whether the validation set is scored at the end.")
    ] = True,
) -> None:
    """Train a denoiser on a cohort or on a release with pairs; also under torchrun."""
    from veilray.cli.training import check_launch, run_training
    from veilray.parallel.spawn import run_ranks, under_launcher
    from veilray.training.config import load_config

    if config is None and not resume:
        raise UsageError("name a configuration: `default`, `paper` or a TOML file")
    settings = load_config(config if config is not None else out / "config.toml", overrides or [])
    setup = settings.launch.setup
    if devices is not None and not under_launcher() and (setup == "ddp" or (setup == "auto" and devices != 1)):
        device = check_launch(settings, devices, data=data, out=out, resume=resume)
        words = [*([config] if config is not None else []), "--data", str(data), "--out", str(out)]
        words += [word for override in overrides or [] for word in ("--set", override)]
        words += ["--resume"] if resume else []
        words += ["--lpips-backbone", str(lpips_backbone)] if lpips_backbone is not None else []
        words += [] if evaluate else ["--no-evaluate"]
        run_ranks(["train", *words], ranks=devices, device=device)
        return
    run_training(
        settings,
        data=data,
        out=out,
        resume=resume,
        evaluate=evaluate,
        lpips_backbone=lpips_backbone,
        devices=devices,
    )
