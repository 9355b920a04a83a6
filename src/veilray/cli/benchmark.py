"""veilray benchmark: every training of a plan, each scored on the test set, in one report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from veilray.cli.options import BACKBONE
from veilray.errors import UsageError, VeilrayError


def benchmark_command(
    plan: Annotated[str, typer.Argument(help="Plan file, or a shipped one: `quick`, `paper`, `controlled`.")],
    data: Annotated[Path, typer.Option(help="Cohort, or release with pairs.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder of the benchmark; one that was begun goes on.", show_default=False)],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Override of every run, such as train.epochs=5; may be repeated.")
    ] = None,
    lpips_backbone: Annotated[Path | None, BACKBONE] = None,
    download: Annotated[
        bool, typer.Option("--download/--no-download", help="Whether LPIPS may fetch torchvision's AlexNet (233 MB).")
    ] = True,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check plan, data and --out, show what would be done, and end.")
    ] = False,
) -> None:
    """Train every combination of a plan's factors, one after another, and report on speed and quality.

    Called again with the same --out it goes on where it stopped: what is done is not repeated, what failed is tried
    again.
    """
    from veilray.cli.reporting import perceptual_metric
    from veilray.evaluation.benchmark.groups import analyse
    from veilray.evaluation.benchmark.plan import base_config, load_plan
    from veilray.evaluation.benchmark.run import counts, intended, run_plan
    from veilray.parallel.devices import pick_device
    from veilray.report.benchmark import render_benchmark

    chosen = load_plan(plan, overrides or [])
    device = pick_device(base_config(chosen).launch.device)
    if out.is_file():
        raise UsageError(f"--out {out} is a file; name a folder for the benchmark")
    if dry_run:
        for name, what in intended(chosen, data=data, out=out, device=device):
            typer.echo(f"{name}: {what}")
        return
    metric = perceptual_metric(lpips_backbone, download=download)
    try:
        records = run_plan(chosen, data=data, out=out, device=device, perceptual=metric, note=typer.echo)
    except KeyboardInterrupt:
        raise VeilrayError("stopped; the same command goes on from here") from None
    analysis = analyse(chosen, records, out)
    render_benchmark(analysis, out / "report.html")
    typer.echo(f"{counts(records)}; report: {out / 'report.html'}")
    failed = [record for record in records if record.status == "failed"]
    if failed:
        raise VeilrayError(
            f"{len(failed)} of {len(records)} runs failed, {failed[0].name} first: {failed[0].reason}; "
            "the same command tries them again"
        )
