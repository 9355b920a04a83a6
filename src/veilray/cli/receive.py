"""veilray receive: the server that takes bundles."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from veilray.errors import UsageError

if TYPE_CHECKING:
    from veilray.exchange.transfer.config import ReceiveConfig


def receive_command(
    config: Annotated[
        Path | None, typer.Argument(metavar="CONFIG.toml", help="Address, certificates, senders.", show_default=False)
    ] = None,
    make_test_ca: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Write a test authority with certificates for loopback, valid for 30 days, and end.",
            show_default=False,
        ),
    ] = None,
    client: Annotated[
        list[str] | None,
        typer.Option(help="With --make-test-ca: name of a client; repeat for more.", show_default=False),
    ] = None,
    show: Annotated[
        bool, typer.Option("--list", help="Show which bundles lie here and which are on their way, and end.")
    ] = False,
) -> None:
    """Take bundles from known senders by HTTPS with mutual TLS, until it is stopped. It needs no key folder."""
    from veilray.cli.site_keys import need_packages

    need_packages()
    if (config is None) == (make_test_ca is None):
        raise UsageError("give a configuration, CONFIG.toml, or --make-test-ca DIR")
    if make_test_ca is not None:
        if show:
            raise UsageError("--list looks into what a CONFIG.toml names: leave --make-test-ca out")
        _make_test_authority(make_test_ca, client or ["client"])
        return
    if client:
        raise UsageError("--client goes with --make-test-ca; a configuration names its senders itself")
    if config is not None:
        from veilray.exchange.transfer.config import load_receive_config

        settings = load_receive_config(config)
        if show:
            _list(settings)
        else:
            from veilray.exchange.transfer.server import make_receiver

            receiver = make_receiver(settings)
            typer.echo(f"receiving at {receiver.address} into {settings.spool}")
            receiver.run()


def _make_test_authority(folder: Path, clients: list[str]) -> None:
    from veilray.exchange.transfer.authority import make_test_authority

    make_test_authority(folder, clients=clients)
    files = [f"{name}.{ending}" for name in ("server", *clients) for ending in ("pem", "key")]
    typer.echo(f"{folder}: ca.pem, {', '.join(files)}; for trying out only")


def _list(settings: ReceiveConfig) -> None:
    from veilray.exchange.transfer.waiting import list_waiting

    found = list_waiting(settings)
    for one in found:
        state = str(one.path) if one.path else f"on its way, {one.there:,} bytes are safe"
        who = f"{one.sender} (card {one.fingerprint[:16]}...)"
        typer.echo(f"{one.since.isoformat()} {who}, {one.size:,} bytes, SHA-256 {one.sha256}: {state}")
    whole, coming = [one for one in found if one.path], [one for one in found if not one.path]
    typer.echo(f"{len(whole):,} bundles wait, {sum(one.size for one in whole):,} bytes; {len(coming):,} on their way")
