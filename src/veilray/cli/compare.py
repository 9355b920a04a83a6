"""veilray compare: evaluated runs side by side in one report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from veilray.errors import UsageError


def compare_command(
    runs: Annotated[list[Path], typer.Argument(help="Evaluated run folders.", show_default=False)],
    out: Annotated[Path, typer.Option(help="HTML file to write.", show_default=False)],
    data: Annotated[
        Path | None, typer.Option(help="Their cohort, for the pictures; else where it was.", show_default=False)
    ] = None,
    originals: Annotated[
        Path | None,
        typer.Option(help="At Site One: the cohort that the release in --data was made from.", show_default=False),
    ] = None,
    note: Annotated[
        list[str] | None,
        typer.Option(help="What readers must know of the data; shown under Data. May be repeated.", show_default=False),
    ] = None,
) -> None:
    """Compare evaluated runs: tables, paired differences, curves and pictures in one HTML file."""
    if out.is_dir():
        raise UsageError(f"--out {out} is a folder; name the HTML file to write, such as {out / 'report.html'}")
    if out.is_file() and out.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"--out {out} exists and is no HTML file; name the report, such as {out.with_suffix('.html')}")
    if originals is not None and data is None:
        raise UsageError("--originals needs --data: name the release that was made from them")
    from veilray.cli.reporting import write_report
    from veilray.evaluation.subject import open_scored
    from veilray.parallel.devices import pick_device

    shown = None if data is None else open_scored(data, originals=originals)
    write_report(runs, data=shown, out=out, device=pick_device("auto"), notes=note or ())
    typer.echo(f"report: {out}")
