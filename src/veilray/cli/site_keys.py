"""The key folder, as the commands of the exchange open it; a passphrase never comes by the command line."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from veilray.errors import UsageError

if TYPE_CHECKING:
    from veilray.exchange.keys.folder import KeyFolder
    from veilray.exchange.keys.secret import Secret
    from veilray.exchange.ledger.records import Override

KEYS = typer.Option("--keys", help="Key folder of this site, from `veilray keygen`.", show_default=False)
PASSPHRASE_FILE = typer.Option(
    "--passphrase-file", help="File whose one line is the passphrase; else it is asked for.", show_default=False
)


def open_keys(path: Path, passphrase_file: Path | None) -> KeyFolder:
    """Open a key folder, with its passphrase from a private file or the terminal where it has one.

    Raises UsageError where a passphrase is needed and neither is there.
    """
    from veilray.exchange.keys.folder import KeyFolder

    keys = KeyFolder.open(path)
    if not keys.locked:
        return keys
    return KeyFolder.open(path, passphrase=old_passphrase(passphrase_file, what=str(path)))


def need_packages() -> None:
    """UsageError unless everything that sending and receiving need is installed."""
    import importlib.util

    for package in ("cryptography", "fastapi", "httpx", "pyrage", "uvicorn"):
        if importlib.util.find_spec(package) is None:
            raise UsageError(f"sending and receiving need {package}: install Veilray with its extra 'sites'")


def old_passphrase(file: Path | None, *, what: str) -> Secret:
    """The passphrase of `what`, from a private file or the terminal; UsageError where neither is there."""
    from veilray.exchange.keys.secret import read_passphrase

    if file is not None:
        return read_passphrase(_read(file), source=str(file))
    return read_passphrase(_ask(f"passphrase of {what}: "), source="the prompt")


def new_passphrase(file: Path | None, *, ask: bool, what: str) -> Secret | None:
    """A new passphrase for `what`: from a private file; where `ask`, typed twice at the terminal; else None."""
    from veilray.exchange.keys.secret import read_passphrase

    if file is not None or not ask:
        return None if file is None else read_passphrase(_read(file), source=str(file))
    typed = _ask(f"new passphrase for {what}: ")
    if _ask("once more: ") != typed:
        raise UsageError("the two passphrases differ; nothing was changed")
    return read_passphrase(typed, source="the prompt")


def parse_override(name: str | None, reason: str | None) -> Override | None:
    """Who answers for what the ledger refuses, and why; None where nobody does. UsageError unless both are said."""
    from veilray.exchange.ledger.records import Override

    if name is None and reason is None:
        return None
    if not (name or "").strip() or not (reason or "").strip():
        raise UsageError("--override-name and --override-reason go together; both are kept")
    return Override(name=name or "", reason=reason or "")


def _read(file: Path) -> str:
    from veilray.exchange.keys.keyfile import read_private

    try:
        return read_private(file).decode()
    except UnicodeDecodeError:
        raise UsageError(f"{file} holds no passphrase: it is not text") from None


def _ask(prompt: str) -> str:
    import getpass
    import sys

    if not sys.stdin.isatty():
        raise UsageError("there is no terminal to ask for a passphrase: name a file that holds it, --passphrase-file")
    return getpass.getpass(prompt)
