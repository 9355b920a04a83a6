"""veilray obfuscate: a cohort becomes a release that may leave the site."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from veilray.errors import UsageError

if TYPE_CHECKING:
    from veilray.obfuscation.config import NoiseConfig


def obfuscate_command(
    cohort: Annotated[Path, typer.Argument(help="Cohort to obfuscate.", show_default=False)],
    out: Annotated[Path, typer.Option(help="New folder for the release.", show_default=False)],
    mean: Annotated[float, typer.Option(help="Mean of the noise, on pixels in [0, 1].")] = 0.1,
    std: Annotated[str, typer.Option(help="Its standard deviation, or LOW,HIGH to draw one for each image.")] = "0.2",
    clip: Annotated[bool, typer.Option("--clip/--no-clip", help="Clamp noisy pixels to [0, 1].")] = True,
    pairs: Annotated[bool, typer.Option("--pairs", help="Put the clean images in too, for training.")] = False,
    seed: Annotated[
        int | None,
        typer.Option(min=0, help="Reproducible noise, which whoever has the seed can subtract.", show_default=False),
    ] = None,
) -> None:
    """Add Gaussian noise to every image and replace every id by a random pseudonym.

    The list of pseudonyms stays in the cohort's folder, under releases/.
    """
    from veilray.cli.progress import progress
    from veilray.cohort.cohort import Cohort
    from veilray.cohort.obfuscate import write_release

    noise = _parse_noise(mean, std, clip)
    data = Cohort.open(cohort)
    with progress(len(data), "obfuscating", "images") as bar:
        made = write_release(data, out, noise=noise, pairs=pairs, seed=seed, advance=bar.advance)
    typer.echo(f"{made.path}: {len(data):,} images, noise mean {mean:g}, std {std}, clipped: {'yes' if clip else 'no'}")
    typer.echo(f"pseudonyms, to stay here: {made.pseudonyms}")
    if pairs:
        typer.echo("The clean images are in it: it hides nothing from whoever receives it.")
    if seed is not None:
        typer.echo("Made from a seed: whoever learns or guesses it recovers the clean images, but for clamped pixels.")
    if made.earlier:
        times = "once" if made.earlier == 1 else f"{made.earlier} times"
        typer.echo(f"This cohort was released {times} before: independent noise averages out over releases.")
    typer.echo(f"digest {made.record.digest}")


def _parse_noise(mean: float, std: str, clip: bool) -> NoiseConfig:
    from pydantic import ValidationError

    from veilray.obfuscation.config import NoiseConfig

    try:
        values = [float(part) for part in std.split(",")]
    except ValueError:
        values = []
    if len(values) not in (1, 2):
        raise UsageError(f"--std {std}: write a number such as 0.2, or a range such as 0.05,0.4")
    try:
        return NoiseConfig(mean=mean, std=values[0] if len(values) == 1 else (values[0], values[1]), clip=clip)
    except ValidationError as error:
        fault = error.errors()[0]
        raise UsageError(f"--{fault['loc'][0] if fault['loc'] else 'std'}: {fault['msg']}") from None
