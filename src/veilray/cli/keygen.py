"""veilray keygen: the keys of a site."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer


def keygen_command(
    out: Annotated[Path, typer.Option(help="New folder for the keys.", show_default=False)],
    name: Annotated[str, typer.Option(help="Name of the site, as its partners will read it.", show_default=False)],
    role: Annotated[
        Literal["site-one", "site-two"],
        typer.Option(help="site-one holds originals and obfuscates; site-two needs no noise or pseudonym keys."),
    ] = "site-one",
    ask_passphrase: Annotated[
        bool, typer.Option("--ask-passphrase", help="Encrypt the keys by a passphrase, asked for now.")
    ] = False,
    passphrase_file: Annotated[
        Path | None,
        typer.Option(help="As --ask-passphrase, but from the one line of a private file.", show_default=False),
    ] = None,
) -> None:
    """Make the keys of a site, each in a file of its own, and its public card.

    `veilray keys` shows, exchanges, rotates and backs them up.
    """
    from veilray.cli.site_keys import new_passphrase
    from veilray.exchange.keys.folder import KeyFolder

    passphrase = new_passphrase(passphrase_file, ask=ask_passphrase, what="the keys")
    keys = KeyFolder.create(out, name=name, role=role, passphrase=passphrase)
    typer.echo(f"{out}: keys of {name}, {role}, {'with' if keys.locked else 'without'} a passphrase")
    typer.echo(f"fingerprint {keys.card.spoken_fingerprint}")
    typer.echo(f"Back them up now: veilray keys backup {out} --out FILE")
    if role == "site-one":
        typer.echo(
            "Guard noise-1.key like the originals: it undoes every release, and without it none can be repeated."
        )
