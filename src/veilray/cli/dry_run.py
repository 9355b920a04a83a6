"""What a release would hold, shown before anything is written."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from veilray.exchange.release.making import ReleasePlan

_OBJECTIONS = 3
"""How many of the ledger's are shown: they concern what stays."""


def show_plan(plan: ReleasePlan) -> None:
    """Print everything that would leave: every file, column and value, and what would stay. Nothing is written."""
    from veilray.cohort.obfuscate import describe
    from veilray.cohort.planned import planned_files, planned_record

    request, contents = plan.request, plan.contents
    record = describe(
        plan.cohort,
        noise=request.noise,
        source=plan.source.kind,
        contents=contents,
        pairs=request.pairs,
        release_id=plan.ledger_release.release_id,
    )
    files = planned_files(plan.cohort, contents, request.noise, record)
    record = planned_record(record, files)
    patients = len({image.patient for image in contents.images})
    typer.echo(f"Nothing is written. {len(contents.images):,} images of {patients:,} patients would leave.")
    typer.echo(record.statement)
    text = record.model_dump_json(indent=2)
    typer.echo("\nfiles")
    for name, (count, size) in files.items():
        what = "lines, and a header" if name.endswith(".csv") else "images"
        typer.echo(f"  {name:<32} {count:>9,} {what}" + (f", {size:,} bytes" if size else ""))
    typer.echo(f"  {'release.json':<32} {'1':>9} record, as below")
    _show_index(plan)
    typer.echo("\nrelease.json (names and digests are random or not known yet)")
    typer.echo("\n".join(f"  {line}" for line in text.splitlines()))
    _show_rest(plan)


def _show_index(plan: ReleasePlan) -> None:
    from veilray.cohort.planned import planned_index

    request, contents = plan.request, plan.contents
    typer.echo("\nindex.csv, every line" + ("" if request.parties else " (names are drawn anew)"))
    for number, line in enumerate(planned_index(plan.cohort, contents, request.noise, pairs=request.pairs)):
        if number == 0:
            typer.echo("  " + ",".join(line))
        typer.echo("  " + ",".join(line.values()))
    typer.echo("\nall values of the columns that say something of an image")
    if not contents.columns:
        typer.echo("  there are no such columns")
    for number, column in enumerate(contents.columns):
        if column == "study":
            studies = {image.values[number] for image in contents.images} - {""}
            typer.echo(f"  {column:<10} pseudonyms of {len(studies):,} studies")
            continue
        images = Counter(image.values[number] for image in contents.images)
        for value, count in sorted(images.items()):
            patients = len({image.patient for image in contents.images if image.values[number] == value})
            typer.echo(f"  {column:<10} {value or '(empty)':<16} {count:>9,} images {patients:>9,} patients")


def _show_rest(plan: ReleasePlan) -> None:
    stays = len(plan.cohort) - len(plan.contents.images)
    typer.echo(f"\n{stays:,} images would stay here; {len(plan.kept_back):,} of them for review of burned-in text")
    for note in plan.notes:
        typer.echo(note)
    if plan.request.parties is None:
        typer.echo("Without keys no ledger is asked.")
        return
    objections = plan.objections()
    for objection in objections[:_OBJECTIONS]:
        typer.echo(f"the ledger would refuse: {objection.label}: {objection.reason}")
    typer.echo(f"The ledger has {len(objections):,} objections.")
