"""veilray receive: the server that takes bundles."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from veilray.errors import UsageError


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
) -> None:
    """Take bundles from known senders by HTTPS with mutual TLS, until it is stopped. It needs no key folder."""
    if (config is None) == (make_test_ca is None):
        raise UsageError("give a configuration, CONFIG.toml, or --make-test-ca DIR")
    if make_test_ca is not None:
        from veilray.exchange.transfer.authority import make_test_authority

        make_test_authority(make_test_ca)
        typer.echo(f"{make_test_ca}: ca.pem, server.pem, server.key, client.pem, client.key; for trying out only")
        return
    if config is not None:
        from veilray.exchange.transfer.config import load_receive_config
        from veilray.exchange.transfer.server import make_receiver

        settings = load_receive_config(config)
        receiver = make_receiver(settings)
        typer.echo(f"receiving at {receiver.address} into {settings.spool}")
        receiver.run()
