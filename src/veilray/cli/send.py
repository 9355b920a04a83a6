"""veilray send: a bundle goes to a receiving server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from veilray.cli.site_keys import KEYS, PASSPHRASE_FILE


def send_command(
    bundle: Annotated[Path, typer.Argument(help="Bundle, *.veil, from `veilray seal`.", show_default=False)],
    to: Annotated[str, typer.Option(help="Address of the receiver, https://HOST:PORT.", show_default=False)],
    keys: Annotated[Path, KEYS],
    ca: Annotated[Path, typer.Option(help="Certificate authority of the receiver, PEM.", show_default=False)],
    cert: Annotated[Path, typer.Option(help="This site's client certificate, PEM.", show_default=False)],
    key: Annotated[Path, typer.Option(help="Its private key, PEM, with mode 0600.", show_default=False)],
    proxy: Annotated[
        str | None, typer.Option(help="HTTP proxy, http://HOST:PORT; TLS goes through it.", show_default=False)
    ] = None,
    timeout: Annotated[float, typer.Option(min=1.0, help="Seconds for connecting and for each write.")] = 60.0,
    passphrase_file: Annotated[Path | None, PASSPHRASE_FILE] = None,
) -> None:
    """Send a bundle by HTTPS with mutual TLS; after a break it goes on where the receiver has it safe."""
    from veilray.cli.progress import progress
    from veilray.cli.site_keys import need_packages, open_keys

    need_packages()
    from veilray.exchange.transfer.client import ClientTls, send_bundle

    site = open_keys(keys, passphrase_file)
    tls = ClientTls(authority=ca, certificate=cert, key=key)
    with progress(None, "sending", "bytes") as bar:
        sent = send_bundle(
            bundle, to, keys=site, tls=tls, proxy=proxy, timeout=timeout, advance=bar.advance, notice=bar.say
        )
    how = "was there already" if sent.already_there else "is there, whole"
    if sent.taken_away:
        how = "was received before and has been taken away since; it was not sent again"
    typer.echo(f"{bundle}, {sent.size:,} bytes, {how}: {sent.sha256}")
    if sent.taken_away:
        typer.echo(
            "If it was lost there, seal it again, or have the receiver delete .done/SHA256 in its spool.", err=True
        )
