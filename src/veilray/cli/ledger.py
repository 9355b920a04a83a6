"""veilray ledger: what left Site One, of which images, and reservations that a killed process left."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from veilray.cli.site_keys import PASSPHRASE_FILE

if TYPE_CHECKING:
    from veilray.cohort.cohort import Cohort
    from veilray.exchange.keys.folder import KeyFolder
    from veilray.exchange.ledger.ledger import Ledger
    from veilray.exchange.ledger.records import ReleaseLine

ledger_app = typer.Typer(help="Look into the release ledger.", no_args_is_help=True, rich_markup_mode=None)

KEYS = typer.Argument(help="Key folder of Site One; the ledger lies in it.", show_default=False)


@ledger_app.command("list")
def list_(
    keys: Annotated[Path, KEYS],
    events: Annotated[bool, typer.Option("--events", help="What happened, with names and reasons, instead.")] = False,
    trained_on: Annotated[
        Path | None,
        typer.Option(help="Only models trained on this cohort or release, as it is now.", show_default=False),
    ] = None,
    passphrase_file: Annotated[Path | None, PASSPHRASE_FILE] = None,
) -> None:
    """List the releases: when, how many images, at which level, for whom, and whether they count; models too."""
    from veilray.cli.site_keys import open_keys

    folder = open_keys(keys, passphrase_file)
    with folder.ledger() as ledger:
        if trained_on is not None:
            _list_models(ledger, trained_on, folder)
            return
        if events:
            for event in ledger.events():
                said = f": {event.name}, {event.reason}" if event.name else ""
                typer.echo(f"{event.at} {event.release_id} {event.what}{said}")
            return
        releases = ledger.releases()
        for line in releases:
            typer.echo(_describe(line, folder))
        _sum_up(releases, [exposure.std for exposure in ledger.exposures()])


@ledger_app.command("history")
def history(
    keys: Annotated[Path, KEYS],
    cohort: Annotated[Path, typer.Argument(help="Cohort that the images are in.", show_default=False)],
    images: Annotated[
        Path | None,
        typer.Option(help="CSV file with image_id: only these, such as a patient's.", show_default=False),
    ] = None,
    passphrase_file: Annotated[Path | None, PASSPHRASE_FILE] = None,
) -> None:
    """Say of the images of a cohort what left: when, for whom, at which level and geometry. It names no ids."""
    from veilray.cli.site_keys import open_keys
    from veilray.cohort.cohort import Cohort
    from veilray.exchange.release.history import left_of

    folder, opened = open_keys(keys, passphrase_file), Cohort.open(cohort)
    rows = _rows(opened, images)
    with folder.ledger() as ledger:
        found = left_of(opened, rows, ledger=ledger)
        lines = {line.release.release_id: line for line in ledger.releases()}
    for original, exposure in found:
        for given in exposure.given:
            line = lines[given.release_id]
            what = "clean pixels" if given.mode == "pairs" else f"noise of std {given.std:g}"
            clip = "" if given.clip else ", unclamped"
            typer.echo(
                f"{original.label}: {line.made} {given.release_id} {line.status}: {what}{clip}, {given.geometry}, "
                f"{_receivers(line, folder)}"
            )
    left = sum(bool(exposure.given) for _, exposure in found)
    typer.echo(f"of {left:,} of {len(found):,} images something left or may have; reservations count")


def _rows(cohort: Cohort, images: Path | None) -> list[int]:
    """Rows of the images that a file lists; all where there is none."""
    from veilray.cohort.lists import read_image_ids
    from veilray.errors import DataError

    if images is None:
        return list(range(len(cohort)))
    wanted = read_image_ids(images)
    rows = [row for row in range(len(cohort)) if cohort.image_id(row) in wanted]
    if len(rows) < len(wanted):
        raise DataError(f"{len(wanted) - len(rows):,} of the images listed in {images} are not in {cohort.path}")
    return rows


@ledger_app.command("settle")
def settle(
    keys: Annotated[Path, KEYS],
    release: Annotated[str, typer.Argument(help="Id of a reserved release.", show_default=False)],
    left: Annotated[
        bool,
        typer.Option("--released/--not-released", help="Whether anything of it left the site.", show_default=False),
    ],
    name: Annotated[str, typer.Option(help="Who looked.", show_default=False)],
    reason: Annotated[str, typer.Option(help="What was found.", show_default=False)],
    folder: Annotated[
        Path | None,
        typer.Option(help="With --released: the whole release; without it, it cannot be sealed.", show_default=False),
    ] = None,
    passphrase_file: Annotated[Path | None, PASSPHRASE_FILE] = None,
) -> None:
    """Settle a reservation that a killed process left; until then it counts as released."""
    from veilray.cli.site_keys import open_keys
    from veilray.errors import UsageError

    if folder is not None and not left:
        raise UsageError("--folder goes with --released")
    digest = "" if folder is None else _digest(folder, release)
    with open_keys(keys, passphrase_file).ledger() as ledger:
        ledger.settle(release, left=left, name=name, reason=reason, digest=digest)
    typer.echo(f"{release}: {'counts as released' if left else 'counts no more'}")


def _digest(folder: Path, release_id: str) -> str:
    """The digest of a release that is whole; UsageError where the folder is another's."""
    from veilray.cohort.release import Release
    from veilray.errors import UsageError

    release = Release.open(folder)
    release.verify()
    if release.record.release_id != release_id:
        raise UsageError(f"{folder} is release {release.record.release_id}")
    return release.record.digest


def _list_models(ledger: Ledger, data: Path, folder: KeyFolder) -> None:
    from veilray.cohort.open import open_data

    tag = ledger.data_tag(open_data(data).digest)
    found = [line for line in ledger.releases() if line.model is not None and line.model.trained_on == tag]
    for line in found:
        typer.echo(_describe(line, folder))
    typer.echo(f"{len(found):,} models trained on {data}")


def _describe(line: ReleaseLine, folder: KeyFolder) -> str:
    return f"{line.made} {line.release.release_id} {line.status}: {_what(line)}, {_receivers(line, folder)}"


def _receivers(line: ReleaseLine, folder: KeyFolder) -> str:
    names = {known: card.name for card in folder.peers() for known in folder.fingerprints_of(card)}
    return ", ".join(names.get(one, f"{one[:16]}...") for one in line.release.receivers) or "receivers not named"


def _what(line: ReleaseLine) -> str:
    release, model = line.release, line.model
    if model is not None:
        seen = f"{line.images:,} acquisitions of {model.patients:,} patients (data {model.trained_on[:16]})"
        return f"{release.mode}, weights {model.weights_sha256}, trained on {seen}"
    clip = "" if release.clip else ", unclamped"
    return f"{release.mode}, {line.images:,} images, {release.source} noise from std {line.least_std:g}{clip}"


def _sum_up(releases: list[ReleaseLine], stds: list[float]) -> None:
    clean = sum(std == 0 for std in stds)
    noisy = [std for std in stds if 0 < std < float("inf")]
    typer.echo(f"{len(releases):,} releases, {len(stds):,} acquisitions; of {clean:,} clean pixels left")
    if noisy:
        typer.echo(f"composed std of the others: {min(noisy):.3g} to {max(noisy):.3g}")
    reserved = sum(line.status == "reserved" for line in releases)
    if reserved:
        typer.echo(f"{reserved:,} reserved: under way, or left by a killed process; see `veilray ledger settle`")
