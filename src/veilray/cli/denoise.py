"""veilray denoise: images in, denoised PNG out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def denoise_command(
    inputs: Annotated[
        list[Path],
        typer.Argument(metavar="INPUT...", help="PNG, JPEG or DICOM files, folders, archives, or a release."),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the PNG files.", show_default=False)],
    model: Annotated[Path, typer.Option(help="Run folder.", show_default=False)],
    mean: Annotated[
        float | None,
        typer.Option(help="Mean of the images' noise; 0 where none was added. Left out: the release's or the run's."),
    ] = None,
    tile: Annotated[
        int | None, typer.Option(help="Side of a tile in pixels; larger images are cut up.", show_default=False)
    ] = None,
    head: Annotated[
        int | None,
        typer.Option(help="Of a U-Net++ trained with deep supervision: stop at this head.", show_default=False),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
) -> None:
    """Denoise images of any size into PNG files of the same size and bit depth; nothing is overwritten."""
    from veilray.cli.progress import progress
    from veilray.errors import DataError
    from veilray.inference.denoiser import Denoiser
    from veilray.inference.files import denoise_inputs

    denoiser = Denoiser.load(model, device=device, tile=tile, head=head)
    done = failed = 0
    with progress(None, "denoising", "images") as bar:
        for result in denoise_inputs(inputs, out, denoiser=denoiser, mean=mean):
            bar.advance(1)
            if result.target is None:
                failed += 1
                bar.say(f"left out {result.source}: {result.reason}")
            else:
                done += 1
    if not done:
        raise DataError(f"nothing was denoised; {failed} inputs were left out" if failed else "no images were found")
    typer.echo(f"{done} images denoised into {out}" + (f", {failed} left out" if failed else ""))
