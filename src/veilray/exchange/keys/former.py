"""Cards that are in use no more: a partner's that was replaced or unpinned, and a site's own from before a rotation.

    KEYS/former/N.json    in the order in which they went

They are trusted for nothing. A partner that changes its keys keeps the pseudonyms that it was given, and what it has
under old ones can be led back; a bundle that was on its way through a change can be told from a stranger's.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from veilray.errors import DataError
from veilray.exchange.keys.card import PublicCard, card_from_json
from veilray.exchange.keys.keyfile import read_private, write_private

FORMER = "former"
SCHEMA_VERSION = 1

Why = Literal["replaced", "unpinned", "own"]
_NUMBERED = re.compile(r"([1-9][0-9]{0,5})\.json")


@dataclass(frozen=True)
class Former:
    """A card that went, and why: another of its name came, it was unpinned, or it was this site's own."""

    card: PublicCard
    why: Why


def add_former(folder: Path, card: PublicCard, why: Why) -> None:
    """Note that a card goes, before it does."""
    (folder / FORMER).mkdir(mode=0o700, exist_ok=True)
    number = max(_numbers(folder), default=0) + 1
    value = {
        "schema_version": SCHEMA_VERSION,
        "kind": "veilray former card",
        "why": why,
        "card": card.to_json(),
    }
    write_private(folder / FORMER / f"{number}.json", (json.dumps(value, indent=2) + "\n").encode())


def read_former(folder: Path) -> list[Former]:
    """All that went, oldest first; DataError where a file is damaged."""
    return [_read(folder / FORMER / f"{number}.json") for number in sorted(_numbers(folder))]


def chain(card: PublicCard, former: list[Former]) -> list[str]:
    """Fingerprints of a partner, newest first: of its card, and of those that were replaced one after the other.

    The last one names the partner for as long as its cards replace each other. An unpinned card ends the chain, unless
    the same card came back.
    """
    found = [card.fingerprint]
    for one in reversed(former):
        if one.why == "own" or one.card.name.casefold() != card.name.casefold():
            continue
        if one.why == "unpinned" and one.card.fingerprint != found[-1]:
            break
        found.append(one.card.fingerprint)
    return list(dict.fromkeys(found))


def _numbers(folder: Path) -> list[int]:
    matches = (_NUMBERED.fullmatch(file.name) for file in (folder / FORMER).glob("*.json"))
    return [int(match[1]) for match in matches if match]


def _read(file: Path) -> Former:
    try:
        value: Any = json.loads(read_private(file, most=2**15))
    except (ValueError, RecursionError):
        value = None
    if isinstance(value, dict) and value.get("schema_version") == SCHEMA_VERSION and value.get("why") in get_args(Why):
        return Former(card_from_json(value.get("card"), source=str(file)), value["why"])
    raise DataError(f"{file} is damaged or no former card; restore a backup")
