"""veilray open: a bundle becomes the folder that was sealed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from veilray.cli.site_keys import KEYS, PASSPHRASE_FILE


def open_command(
    bundle: Annotated[Path, typer.Argument(help="Bundle, *.veil.", show_default=False)],
    out: Annotated[Path, typer.Option(help="New folder for what is in it.", show_default=False)],
    keys: Annotated[Path, KEYS],
    passphrase_file: Annotated[Path | None, PASSPHRASE_FILE] = None,
) -> None:
    """Check a bundle from a pinned site and decrypt it into a new folder: as a whole, or not at all."""
    from veilray.cli.progress import progress
    from veilray.cli.site_keys import open_keys
    from veilray.exchange.sealing.open_ import open_bundle

    site = open_keys(keys, passphrase_file)
    with progress(None, "opening", "bytes") as bar:
        opened = open_bundle(bundle, out, keys=site, advance=bar.advance)
    manifest = opened.manifest
    how = ", there already and unchanged" if opened.in_place else ""
    typer.echo(f"{out}: {manifest.kind} from {opened.sender}, {len(manifest.parts):,} files{how}")
    typer.echo(
        f"bundle {manifest.bundle_id}, sequence {manifest.sequence}, sealed {manifest.sealed_at:%Y-%m-%d %H:%M} UTC"
    )
