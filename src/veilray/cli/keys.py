"""veilray keys: look after the keys that `veilray keygen` made."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from veilray.cli.site_keys import PASSPHRASE_FILE
from veilray.errors import RefusedError, UsageError

if TYPE_CHECKING:
    from veilray.exchange.keys.folder import KeyFolder

keys_app = typer.Typer(
    help="Show, exchange, rotate and back up the keys of a site.", no_args_is_help=True, rich_markup_mode=None
)

KEYS = typer.Argument(help="Key folder, from `veilray keygen`.", show_default=False)
BACKUP_PASSPHRASE = typer.Option(
    "--passphrase-file", help="Private file whose one line is the backup's passphrase; else asked.", show_default=False
)

_ROTATED = {
    "signing": (
        "Send the new card to every partner: whoever has pinned it refuses what the old key signed, and who has not "
        "refuses what the new one signs. The old key is deleted."
    ),
    "receiving": (
        "Send the new card to every partner, who refuses what is sealed from now on until it is pinned. The old key is "
        "kept for what is still under way to it; once that is opened, or if it was stolen, delete its file."
    ),
    "noise": (
        "New images get noise from the new secret. An image that left before would get independent noise, which "
        "averages out: the ledger refuses it. The old secret is deleted here, not in backups; as long as one "
        "exists, whoever gets it undoes the releases made with it."
    ),
    "pseudonyms": (
        "New releases name patients and images anew, so no receiver can follow a patient across the change. The old "
        "key is kept to lead earlier pseudonyms back."
    ),
}


@keys_app.command("show")
def show(keys: Annotated[Path, KEYS]) -> None:
    """Say whose keys these are, which files are in use, and whose cards are pinned."""
    from veilray.exchange.keys.folder import KeyFolder

    folder = KeyFolder.open(keys)
    typer.echo(f"{folder.card.name}, {folder.role}, {'with' if folder.locked else 'without'} a passphrase")
    typer.echo(f"fingerprint {folder.card.spoken_fingerprint}")
    typer.echo("in use: " + ", ".join(folder.files_in_use()))
    for card in folder.peers():
        typer.echo(f"pinned: {card.name}, fingerprint {card.spoken_fingerprint}")


@keys_app.command("card")
def card(
    keys: Annotated[Path, KEYS], out: Annotated[Path, typer.Option(help="New file, *.json.", show_default=False)]
) -> None:
    """Write the public card, which partners pin; it holds nothing secret."""
    from veilray.exchange.keys.folder import KeyFolder
    from veilray.files import write_text

    if out.exists():
        raise UsageError(f"{out} already exists; name a new file")
    folder = KeyFolder.open(keys)
    write_text(out, folder.card.to_text())
    typer.echo(f"{out}: the card of {folder.card.name}")
    typer.echo(f"Send it, then read its fingerprint out by telephone: {folder.card.spoken_fingerprint}")


@keys_app.command("pin")
def pin(
    keys: Annotated[Path, KEYS],
    card_file: Annotated[Path, typer.Argument(metavar="CARD", help="A partner's public card.", show_default=False)],
    fingerprint: Annotated[
        str | None,
        typer.Option(help="As the partner read it out; without it you are asked to compare.", show_default=False),
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="In place of another card of that name.")] = False,
) -> None:
    """Trust a partner's card, once its fingerprint was compared by telephone."""
    from veilray.exchange.keys.card import read_card
    from veilray.exchange.keys.folder import KeyFolder

    folder, new = KeyFolder.open(keys), read_card(card_file)
    if fingerprint is not None and "".join(fingerprint.lower().split()) != new.fingerprint:
        raise RefusedError(f"the card of {new.name} has another fingerprint: {new.spoken_fingerprint}")
    typer.echo(f"{new.name}, fingerprint {new.spoken_fingerprint}")
    if fingerprint is None:
        _confirm(f"Did {new.name} read out this fingerprint by telephone?", instead="--fingerprint")
    folder.pin(new, replace=replace)
    typer.echo(f"pinned in {keys}")


@keys_app.command("unpin")
def unpin(
    keys: Annotated[Path, KEYS],
    name: Annotated[str, typer.Argument(help="Name or fingerprint of the partner.", show_default=False)],
) -> None:
    """Trust a partner's card no more: its bundles are refused from now on, and none can be sealed for it."""
    from veilray.exchange.keys.folder import KeyFolder

    gone = KeyFolder.open(keys).unpin(name)
    typer.echo(f"{gone.name} is no longer pinned in {keys}")


@keys_app.command("rotate")
def rotate(
    keys: Annotated[Path, KEYS],
    kind: Annotated[
        Literal["signing", "receiving", "noise", "pseudonyms"], typer.Argument(help="Which key.", show_default=False)
    ],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    passphrase_file: Annotated[Path | None, PASSPHRASE_FILE] = None,
) -> None:
    """Put a new key in the place of one, and say what that means."""
    from veilray.cli.site_keys import open_keys

    typer.echo(_ROTATED[kind])
    if not yes:
        _confirm(f"Rotate the {kind} key of {keys}?", instead="--yes")
    folder = open_keys(keys, passphrase_file)
    folder.rotate(kind)
    typer.echo("in use: " + ", ".join(folder.files_in_use()))
    if kind in ("signing", "receiving"):
        typer.echo(f"fingerprint {folder.card.spoken_fingerprint}")


@keys_app.command("passphrase")
def passphrase(
    keys: Annotated[Path, KEYS],
    passphrase_file: Annotated[Path | None, PASSPHRASE_FILE] = None,
    new_passphrase_file: Annotated[
        Path | None, typer.Option(help="Private file with the new one; else it is asked for.", show_default=False)
    ] = None,
) -> None:
    """Change the passphrase. Backups keep the old one."""
    from veilray.cli.site_keys import new_passphrase, open_keys

    folder = open_keys(keys, passphrase_file)
    new = new_passphrase(new_passphrase_file, ask=True, what="the keys")
    assert new is not None
    folder.change_passphrase(new)
    typer.echo(f"{keys}: another passphrase")


@keys_app.command("backup")
def backup(
    keys: Annotated[Path, KEYS],
    out: Annotated[Path, typer.Option(help="New file, *.age.", show_default=False)],
    passphrase_file: Annotated[Path | None, BACKUP_PASSPHRASE] = None,
) -> None:
    """Write keys, pinned cards, ledger and sequences into one file, encrypted by a passphrase of its own."""
    from veilray.cli.site_keys import new_passphrase
    from veilray.exchange.keys.backup import write_backup
    from veilray.exchange.keys.folder import KeyFolder

    folder = KeyFolder.open(keys)
    phrase = new_passphrase(passphrase_file, ask=True, what="the backup")
    assert phrase is not None
    typer.echo(f"{out}: {write_backup(folder, out, passphrase=phrase)} files of {keys}")
    typer.echo("Keep it apart from its passphrase, and make a new one after every release: the ledger is in it.")


@keys_app.command("restore")
def restore(
    backup_file: Annotated[Path, typer.Argument(metavar="BACKUP", help="From `backup`.", show_default=False)],
    out: Annotated[Path, typer.Option(help="New folder for the keys.", show_default=False)],
    passphrase_file: Annotated[Path | None, BACKUP_PASSPHRASE] = None,
) -> None:
    """Make a key folder of a backup."""
    from veilray.cli.site_keys import old_passphrase
    from veilray.exchange.keys.backup import restore_backup

    phrase = old_passphrase(passphrase_file, what=str(backup_file))
    folder = restore_backup(backup_file, out, passphrase=phrase)
    typer.echo(f"{out}: keys of {folder.card.name}, {folder.role}")
    typer.echo(_what_is_forgotten(folder))


def _what_is_forgotten(folder: KeyFolder) -> str:
    opened = "Bundles opened since the backup was made could be passed off as new ones."
    if folder.role == "site-two":
        return opened
    return f"Releases made since then are not in its ledger: do not release those images again. {opened}"


def _confirm(question: str, *, instead: str) -> None:
    if not sys.stdin.isatty():
        raise UsageError(f"there is no terminal to ask at: give {instead}")
    if not typer.confirm(question):
        raise RefusedError("nothing was changed")
