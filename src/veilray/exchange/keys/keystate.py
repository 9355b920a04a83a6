"""What `keys.json` of a key folder says: role, own card, and which file of each kind of key is in use."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from veilray.errors import DataError
from veilray.exchange.keys.card import PublicCard, card_from_json
from veilray.exchange.keys.keyfile import read_private, write_private

SCHEMA_VERSION = 1
STATE_FILE = "keys.json"

Role = Literal["site-one", "site-two"]
KeyKind = Literal["signing", "receiving", "noise", "pseudonyms", "ledger"]
ROLES: Mapping[Role, tuple[KeyKind, ...]] = {
    "site-one": ("signing", "receiving", "noise", "pseudonyms", "ledger"),
    "site-two": ("signing", "receiving"),
}


@dataclass(frozen=True, kw_only=True)
class KeyState:
    """The state of a key folder; it changes by one rename of its file."""

    role: Role
    card: PublicCard
    current: Mapping[KeyKind, int]
    """Number of the file in use, by kind."""
    lock: str | None = None
    """age recipient that the key files are encrypted to; None without a passphrase."""

    def save(self, folder: Path) -> None:
        """Write the state into `folder`, whole or not at all."""
        value = {
            "schema_version": SCHEMA_VERSION,
            "kind": "veilray key folder",
            "role": self.role,
            "current": dict(self.current),
            "lock": self.lock,
            "card": self.card.to_json(),
        }
        write_private(folder / STATE_FILE, (json.dumps(value, indent=2) + "\n").encode())


def read_state(folder: Path) -> KeyState:
    """The state in `folder`; DataError where it is missing or damaged, RefusedError where others could read it."""
    file = folder / STATE_FILE
    try:
        value: Any = json.loads(read_private(file))
    except (ValueError, RecursionError):
        raise _damaged(file) from None
    if not isinstance(value, dict) or value.get("kind") != "veilray key folder":
        raise _damaged(file)
    if value.get("schema_version") != SCHEMA_VERSION:
        raise DataError(f"{file} is of another version; this Veilray reads version {SCHEMA_VERSION}")
    current, lock = value.get("current"), value.get("lock")
    if not isinstance(current, dict) or not isinstance(lock, str | None):
        raise _damaged(file)
    numbers = [number for number in current.values() if type(number) is int and 1 <= number <= 10_000]
    role: Role
    for role, kinds in ROLES.items():
        if role == value.get("role") and set(current) == set(kinds) and len(numbers) == len(current):
            card = card_from_json(value.get("card"), source=str(file))
            return KeyState(role=role, card=card, current=current, lock=lock)
    raise _damaged(file)


def _damaged(file: Path) -> DataError:
    return DataError(f"{file} is damaged or not of a key folder; restore a backup")
