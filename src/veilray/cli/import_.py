"""veilray import: radiographs become a cohort."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from veilray.errors import UsageError

if TYPE_CHECKING:
    from veilray.cohort.build import ImportReport


def import_command(
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="SOURCE...", help="PNG, JPEG and DICOM files, folders, .zip, .tar, .tar.gz.", show_default=False
        ),
    ],
    out: Annotated[Path, typer.Option(help="New folder for the cohort.", show_default=False)],
    size: Annotated[str, typer.Option(help="Side in pixels (images are stretched to squares), or `native`.")] = "256",
    patients: Annotated[
        Path | None,
        typer.Option(
            help="CSV file with image_id and patient_id; may say issuer, view, sex, age, spacing, burned_in, date too.",
            show_default=False,
        ),
    ] = None,
    split: Annotated[
        Path | None,
        typer.Option(help="CSV file with image_id and split; decides in place of --shares.", show_default=False),
    ] = None,
    shares: Annotated[str, typer.Option(help="Patients in train/validation/test, in per cent.")] = "80/10/10",
    split_seed: Annotated[int, typer.Option(help="Key of the split of patients.")] = 0,
    modality: Annotated[
        list[str] | None,
        typer.Option(help="DICOM modality to take, in place of CR, DX and RG; repeatable.", show_default=False),
    ] = None,
    id_from: Annotated[
        Literal["stem", "path"],
        typer.Option(help="Name images that are no DICOM by their file's stem, or by its path."),
    ] = "stem",
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; all cores if left out.")] = None,
) -> None:
    """Read radiographs into a cohort, split by patient; under torchrun the ranks share the files out.

    Files that cannot be used are listed in the cohort's import_report.csv, each with its reason.
    """
    from veilray.cli.ranks import shown_by_lead, working_group
    from veilray.cohort.build import import_radiographs
    from veilray.cohort.split import parse_shares
    from veilray.images.sources import count_files

    with working_group() as group, shown_by_lead(group, count_files(sources), "importing", "files") as bar:
        report = import_radiographs(
            sources,
            out,
            size=_parse_size(size),
            shares=parse_shares(shares),
            split_seed=split_seed,
            split_file=split,
            patients=patients,
            modalities=modality or None,
            id_from=id_from,
            workers=workers,
            advance=bar.advance,
            group=group,
        )
    if group.is_lead:
        _print(report)


def _parse_size(text: str) -> int | None:
    if text == "native":
        return None
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"--size {text}: write a number of pixels, or native") from None


def _print(report: ImportReport) -> None:
    record = report.record
    typer.echo(f"{report.path}: {sum(record.images.values()):,} images of {sum(record.patients.values()):,} patients")
    for split, images in record.images.items():
        typer.echo(f"  {split:<10} {images:>7,} images {record.patients[split]:>7,} patients")
    for note in report.notes:
        typer.echo(note)
    typer.echo(f"digest {record.digest}")
