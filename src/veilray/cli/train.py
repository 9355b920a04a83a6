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
    lpips_backbone: Annotated[Path | None, BACKBONE] = None,
) -> None:
    """Train a denoiser on a cohort or on a release with pairs."""
    from veilray.cli.training import run_training
    from veilray.training.config import load_config

    if config is None and not resume:
        raise UsageError("name a configuration: `default`, `paper` or a TOML file")
    settings = load_config(config if config is not None else out / "config.toml", overrides or [])
    run_training(settings, data=data, out=out, resume=resume, lpips_backbone=lpips_backbone)
