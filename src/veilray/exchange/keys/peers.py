"""The pinned cards of a key folder: one file for each site it deals with, `peers/NAME.json`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from veilray.errors import DataError, RefusedError
from veilray.exchange.keys.card import PublicCard, parse_card
from veilray.exchange.keys.former import Former, add_former, chain, read_former
from veilray.exchange.keys.keyfile import read_private, write_private

PEERS = "peers"


@dataclass(frozen=True)
class Peers:
    """The cards pinned in a key folder."""

    folder: Path
    """The key folder itself."""

    def all(self) -> list[PublicCard]:
        """The pinned cards, by name; DataError where one is damaged."""
        return [self._read(file) for file in sorted((self.folder / PEERS).glob("*.json"))]

    def find(self, name_or_fingerprint: str) -> PublicCard:
        """The card of that name or fingerprint (64 hex digits); RefusedError where none is pinned."""
        cards = self.all()
        for card in cards:
            if name_or_fingerprint in (card.name, card.fingerprint):
                return card
        known = ", ".join(card.name for card in cards) or "nobody yet"
        raise RefusedError(f"no card of {name_or_fingerprint} is pinned in {self.folder}; pinned: {known}")

    def fingerprints(self, card: PublicCard) -> list[str]:
        """Fingerprints of a pinned partner, newest first: of its card, and of those that this one replaced."""
        return chain(card, self.former())

    def ever(self, name_or_fingerprint: str) -> list[str]:
        """Fingerprints of every card that was ever pinned under a name; RefusedError where none was."""
        former = [one.card for one in reversed(self.former()) if one.why != "own"]
        cards = [*self.all(), *former]
        names = {card.name.casefold() for card in cards if name_or_fingerprint in (card.name, card.fingerprint)}
        if not names:
            self.find(name_or_fingerprint)
        return list(dict.fromkeys(card.fingerprint for card in cards if card.name.casefold() in names))

    def former(self) -> list[Former]:
        """The cards that were replaced or unpinned, and the site's own from before rotations, oldest first."""
        return read_former(self.folder)

    def pin(self, card: PublicCard, *, replace: bool) -> None:
        """Keep a card. RefusedError where other keys have its name, unless `replace`, or its keys another name."""
        # By letters of either case: some file systems do not tell them apart, and no reader should have to.
        same_name = [known for known in self.all() if known.name.casefold() == card.name.casefold()]
        if any(known.fingerprint != card.fingerprint for known in same_name) and not replace:
            raise RefusedError(
                f"another card of {card.name} is pinned already; ask its owner why it changed and compare the "
                "fingerprint by telephone before replacing it"
            )
        for known in self.all():
            if known.fingerprint == card.fingerprint and known.name != card.name:
                raise RefusedError(f"these keys are pinned already, under the name {known.name}")
        for known in same_name:
            if known.fingerprint != card.fingerprint:
                add_former(self.folder, known, "replaced")
        write_private(self._file(card), card.to_text().encode())
        for known in same_name:
            if known.name != card.name:
                self._file(known).unlink()

    def unpin(self, name_or_fingerprint: str) -> PublicCard:
        """Trust a card no more, which is returned; RefusedError where it is not pinned."""
        card = self.find(name_or_fingerprint)
        add_former(self.folder, card, "unpinned")
        self._file(card).unlink()
        return card

    def _file(self, card: PublicCard) -> Path:
        return self.folder / PEERS / f"{card.name}.json"

    def _read(self, file: Path) -> PublicCard:
        card = parse_card(read_private(file), source=str(file))
        if card.name != file.stem:
            raise DataError(f"{file} holds the card of {card.name}; remove it and pin the right one")
        return card
