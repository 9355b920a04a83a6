"""veilray obfuscate: a cohort becomes a release that may leave the site."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from veilray.cli.site_keys import PASSPHRASE_FILE
from veilray.errors import UsageError

if TYPE_CHECKING:
    from veilray.exchange.release.deidentify import Field
    from veilray.exchange.release.making import MadeRelease, Parties, ReleasePlan, Request
    from veilray.exchange.release.review import Blanks
    from veilray.obfuscation.config import NoiseConfig


def obfuscate_command(
    cohort: Annotated[Path, typer.Argument(help="Cohort to obfuscate.", show_default=False)],
    out: Annotated[Path | None, typer.Option(help="New folder for the release.", show_default=False)] = None,
    mean: Annotated[float, typer.Option(help="Mean of the noise, on pixels in [0, 1].")] = 0.1,
    std: Annotated[str, typer.Option(help="Its standard deviation, or LOW,HIGH to draw one for each image.")] = "0.2",
    clip: Annotated[bool, typer.Option("--clip/--no-clip", help="Clamp noisy pixels to [0, 1].")] = True,
    keys: Annotated[
        Path | None, typer.Option(help="Key folder: secret noise, lasting pseudonyms, ledger.", show_default=False)
    ] = None,
    receiver: Annotated[
        str | None, typer.Option(help="Name of the pinned card it is for; goes with --keys.", show_default=False)
    ] = None,
    passphrase_file: Annotated[Path | None, PASSPHRASE_FILE] = None,
    fields: Annotated[
        str, typer.Option(help="Of view, spacing, sex, age, days, study; none for none.")
    ] = "view,spacing",
    keep_rare_sizes: Annotated[
        bool, typer.Option("--keep-rare-sizes", help="Release images of a size that fewer than 5 patients have.")
    ] = False,
    blank: Annotated[
        list[str] | None,
        typer.Option(help="X,Y,WIDTH,HEIGHT of every original to make black; repeatable.", show_default=False),
    ] = None,
    blank_file: Annotated[
        Path | None, typer.Option(help="CSV file with image_id, x, y, width, height.", show_default=False)
    ] = None,
    reviewed: Annotated[
        Path | None,
        typer.Option(help="CSV file with image_id: looked at, free of what must not leave.", show_default=False),
    ] = None,
    pairs: Annotated[bool, typer.Option("--pairs", help="Put the clean images in too, for training.")] = False,
    consent_clean_images: Annotated[
        bool, typer.Option("--consent-clean-images", help="With --pairs: clean images leaving is meant and allowed.")
    ] = False,
    seed: Annotated[
        int | None,
        typer.Option(min=0, help="Research: noise that whoever has the seed can subtract.", show_default=False),
    ] = None,
    leave_out_refused: Annotated[
        bool, typer.Option("--leave-out-refused", help="Keep back what the ledger refuses, not the whole release.")
    ] = False,
    override_name: Annotated[
        str | None, typer.Option(help="Who answers for what the ledger refuses; kept.", show_default=False)
    ] = None,
    override_reason: Annotated[str | None, typer.Option(help="Why; kept.", show_default=False)] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show all that would leave; write nothing.")] = False,
) -> None:
    """Add Gaussian noise to every image, replace every id by a pseudonym, and leave out what is not on a short list.

    The list of pseudonyms stays in the cohort's folder, under releases/.
    """
    from veilray.exchange.release.making import Request

    if out is None and not dry_run:
        raise UsageError("--out is missing: name a new folder for the release, or ask for a --dry-run")
    request = Request(
        noise=_parse_noise(mean, std, clip),
        seed=seed,
        pairs=pairs,
        consent_clean_images=consent_clean_images,
        fields=_parse_fields(fields),
        keep_rare_sizes=keep_rare_sizes,
        blanks=_blanks(blank or [], blank_file),
        reviewed=reviewed,
        leave_out_refused=leave_out_refused,
        parties=_parties(keys, receiver, passphrase_file, override_name, override_reason),
    )
    _run(cohort, out, request, dry_run=dry_run)


def _run(path: Path, out: Path | None, request: Request, *, dry_run: bool) -> None:
    from veilray.cli.dry_run import show_plan
    from veilray.cli.progress import progress
    from veilray.cohort.cohort import Cohort
    from veilray.exchange.release.making import make_release, plan_release
    from veilray.files import check_new_folder

    if out is not None and not dry_run:
        check_new_folder(out)  # before every image is looked at
    cohort = Cohort.open(path)
    with progress(len(cohort), "looking for burned-in text", "images") as bar:
        plan = plan_release(cohort, request, advance=bar.advance)
    if dry_run or out is None:
        show_plan(plan)
        return
    with progress(len(plan.contents.images), "obfuscating", "images") as bar:
        made = make_release(plan, out, advance=bar.advance)
    _report(plan, made)


def _report(plan: ReleasePlan, made: MadeRelease) -> None:
    request, written = plan.request, made.written
    noise, record = request.noise, written.record
    std = noise.std if isinstance(noise.std, float) else f"{noise.std[0]:g},{noise.std[1]:g}"
    clipped = "yes" if noise.clip else "no"
    count = len(plan.contents.images)
    typer.echo(f"{written.path}: {count:,} images, noise mean {noise.mean:g}, std {std}, clipped: {clipped}")
    typer.echo(record.statement)
    typer.echo(f"pseudonyms, to stay here: {written.pseudonyms}")
    if made.quarantine is not None:
        typer.echo(f"{len(plan.kept_back):,} images may hold burned-in text and stay for review: {made.quarantine}")
    for note in plan.notes:
        typer.echo(note)
    if made.overridden:
        typer.echo(f"The ledger's objections to {made.overridden:,} images were overridden; name and reason are kept.")
    if made.voided:
        typer.echo(f"It gives clean pixels of {len(made.voided):,} earlier noisy releases away, which it voids:")
        typer.echo("\n".join(f"  {release}" for release in made.voided))
    if request.parties is None:
        once = "" if written.record.subtractable else "it cannot be repeated, and "
        typer.echo(f"No keys: {once}no ledger remembers it. See `veilray keygen`.")
        if written.earlier:
            times = "once" if written.earlier == 1 else f"{written.earlier} times"
            typer.echo(f"This cohort was released {times} before: independent noise averages out over releases.")
    typer.echo(f"digest {record.digest}")


def _parties(
    keys: Path | None, receiver: str | None, passphrase_file: Path | None, name: str | None, reason: str | None
) -> Parties | None:
    """The part of a request that takes keys."""
    from veilray.cli.site_keys import open_keys, parse_override
    from veilray.exchange.release.making import Parties

    override = parse_override(name, reason)
    if keys is None:
        if receiver is not None or override is not None:
            raise UsageError("--receiver and --override-name need --keys")
        return None
    if receiver is None:
        raise UsageError("--receiver is missing: whose pinned card is it for? see `veilray keys show`")
    folder = open_keys(keys, passphrase_file)
    return Parties(keys=folder, receiver=folder.peer(receiver), override=override)


def _blanks(rectangles: list[str], file: Path | None) -> Blanks:
    from veilray.exchange.release.review import Blanks, parse_blank, read_blanks

    everywhere = tuple(parse_blank(text) for text in rectangles)
    return Blanks(everywhere=everywhere, by_image=read_blanks(file) if file else {})


def _parse_fields(text: str) -> tuple[Field, ...]:
    from veilray.exchange.release.deidentify import FIELDS

    names = [name.strip() for name in text.split(",")]
    if names == ["none"]:
        return ()
    unknown = [name for name in names if name not in FIELDS]
    if unknown:
        raise UsageError(f"--fields {unknown[0]!r}: choose of {', '.join(FIELDS)}, or none")
    return tuple(field for field in FIELDS if field in names)


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
