"""veilray train: one training run, with its evaluation on the validation set and its report."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from veilray.cli.options import BACKBONE
from veilray.errors import RunError, UsageError
from veilray.parallel.group import ALONE, Group, fails_together

if TYPE_CHECKING:
    from veilray.training.config import RunConfig


def train_command(
    context: typer.Context,
    config: Annotated[
        str | None,
        typer.Argument(help="Configuration file, or a shipped one: `default`, `paper`, `dncnn`, `dncnn3`, `tnrd`."),
    ] = None,
    data: Annotated[Path, typer.Option(help="Cohort or release.", show_default=False)] = ...,  # type: ignore[assignment]
    out: Annotated[Path, typer.Option(help="Run folder to make.", show_default=False)] = ...,  # type: ignore[assignment]
    clean: Annotated[
        Path | None, typer.Option(help="Cohort of clean public images to mix in; DATA then holds none.")
    ] = None,
    second: Annotated[Path | None, typer.Option(help="Second release of the same images, for noise2noise.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Override, such as train.epochs=5; may be repeated.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    devices: Annotated[
        int | None,
        typer.Option(help="Train on this many devices of this machine, one process each.", min=1, show_default=False),
    ] = None,
    lpips_backbone: Annotated[Path | None, BACKBONE] = None,
    evaluate: Annotated[
        bool, typer.Option("--evaluate/--no-evaluate", help="Whether the validation set is scored at the end.")
    ] = True,
) -> None:
    """Train a denoiser on a cohort or a release, with clean images or without; also under torchrun."""
    from veilray.cli.training import Sources, check_launch, run_training
    from veilray.parallel.spawn import run_ranks, under_launcher, without_option

    sources = Sources(data=data, clean=clean, second=second)
    read = partial(_configuration, config, overrides or [], out, resume)
    if devices is not None and not under_launcher():
        settings = read(ALONE)
        if settings.launch.setup == "ddp" or (settings.launch.setup == "auto" and devices != 1):
            device = check_launch(settings, devices, data=sources, out=out, resume=resume)
            run_ranks(without_option(context.obj, "--devices"), ranks=devices, device=device)
            return
    run_training(
        read,
        data=sources,
        out=out,
        resume=resume,
        evaluate=evaluate,
        lpips_backbone=lpips_backbone,
        devices=devices,
    )


def _configuration(named: str | None, overrides: Sequence[str], out: Path, resume: bool, ranks: Group) -> RunConfig:
    """The configuration that was named, or the one in the run folder, which the lead alone need see."""
    from veilray.training.config import load_config, parse_config, preset_names

    text, path = "", out / "config.toml"
    with fails_together(ranks):
        if named is None and not resume:
            raise UsageError(f"name a configuration: a TOML file, or one of {', '.join(preset_names())}")
        if named is None and ranks.is_lead:
            if not path.is_file():
                raise RunError(
                    f"--resume: {out} holds no run (config.toml is missing); name the folder of one as --out"
                )
            text = path.read_text(encoding="utf-8")
    text = ranks.broadcast(text)
    with fails_together(ranks):
        config = load_config(named, overrides) if named is not None else parse_config(text, overrides, path=path)
    return config  # noqa: RET504 - mypy takes a `with` for one that may swallow errors
