"""The key folder, as the commands of the exchange open it; a passphrase never comes by the command line."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from veilray.errors import UsageError

if TYPE_CHECKING:
    from veilray.exchange.keys import KeyFolder

KEYS = typer.Option("--keys", help="Key folder of this site, from `veilray keygen`.", show_default=False)
PASSPHRASE_FILE = typer.Option(
    "--passphrase-file", help="File whose one line is the passphrase; else it is asked for.", show_default=False
)


def open_keys(path: Path, passphrase_file: Path | None) -> KeyFolder:
    """Open a key folder, with its passphrase from a private file or the terminal where it has one.

    Raises UsageError where a passphrase is needed and neither is there.
    """
    from veilray.exchange.keyfile import read_private
    from veilray.exchange.keys import KeyFolder
    from veilray.exchange.secret import read_passphrase

    keys = KeyFolder.open(path)
    if not keys.locked:
        return keys
    if passphrase_file is not None:
        text, source = read_private(passphrase_file).decode("utf-8", errors="strict"), str(passphrase_file)
    else:
        text, source = _ask(path), "the prompt"
    return KeyFolder.open(path, passphrase=read_passphrase(text, source=source))


def _ask(path: Path) -> str:
    import getpass
    import sys

    if not sys.stdin.isatty():
        raise UsageError(f"{path} has a passphrase: name a file that holds it with --passphrase-file")
    return getpass.getpass(f"passphrase of {path}: ")
