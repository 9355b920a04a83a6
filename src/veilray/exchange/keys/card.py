"""The public card of a site: what others need to check its signatures and to encrypt for it."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from veilray.errors import DataError, UsageError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

SCHEMA_VERSION = 1
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_HEX_32 = re.compile(r"[0-9a-f]{64}")
_HEX_64 = re.compile(r"[0-9a-f]{128}")
_AGE = re.compile(r"age1[02-9ac-hj-np-z]{58}")
_MOST_BYTES = 8192
_LABEL = b"veilray public card\n"


@dataclass(frozen=True, kw_only=True)
class PublicCard:
    """Name and public keys of a site. Nothing in it is secret; what matters is that it is the right one."""

    name: str
    """Letters, digits, dots, dashes and underscores, at most 63."""
    signing_key: str
    """Ed25519 public key (RFC 8032), 64 hex digits."""
    age_recipient: str
    """X25519 recipient of age (age-encryption.org/v1), `age1...`."""
    signature: str
    """Ed25519 over everything above, by the signing key: a mangled card is noticed. 128 hex digits."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 over both public keys, 64 hex digits; the name has no part in it."""
        return hashlib.sha256(f"{self.signing_key}\n{self.age_recipient}\n".encode()).hexdigest()

    @property
    def spoken_fingerprint(self) -> str:
        """The fingerprint in groups of four, to be read out over the telephone."""
        digits = self.fingerprint
        return " ".join(digits[start : start + 4] for start in range(0, len(digits), 4))

    def public_key(self) -> Ed25519PublicKey:
        """The key that checks this site's signatures."""
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        return Ed25519PublicKey.from_public_bytes(bytes.fromhex(self.signing_key))

    def to_json(self) -> dict[str, Any]:
        """The card as a JSON object."""
        return {
            "schema_version": SCHEMA_VERSION,
            "kind": "veilray public card",
            "name": self.name,
            "signing_key": self.signing_key,
            "age_recipient": self.age_recipient,
            "fingerprint": self.fingerprint,
            "signature": self.signature,
        }

    def to_text(self) -> str:
        """The card as a file's text."""
        return json.dumps(self.to_json(), indent=2) + "\n"


def make_card(*, name: str, signing_key: Ed25519PrivateKey, age_recipient: str) -> PublicCard:
    """The signed card of a site; UsageError where the name is not fit to be one."""
    check_name(name)
    public = signing_key.public_key().public_bytes_raw().hex()
    signature = signing_key.sign(_signed(name, public, age_recipient)).hex()
    return PublicCard(name=name, signing_key=public, age_recipient=age_recipient, signature=signature)


def check_name(name: str) -> str:
    """`name` itself, where it is fit to name a site; UsageError where not."""
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name!r} cannot name a site: use up to 63 letters, digits, dots, dashes and underscores")
    return name


def read_card(path: Path) -> PublicCard:
    """The card in a file; DataError where there is none, or none that is whole."""
    try:
        with path.open("rb") as stream:
            data = stream.read(_MOST_BYTES + 1)
    except (FileNotFoundError, IsADirectoryError):
        raise DataError(f"{path} is missing or not a file; a public card is wanted") from None
    return parse_card(data, source=str(path))


def parse_card(data: bytes | str, *, source: str) -> PublicCard:
    """The card that `data` holds, its signature checked; `source` names it in errors. DataError where it is damaged."""
    try:
        value = json.loads(data) if len(data) <= _MOST_BYTES else None
    except (ValueError, RecursionError):
        value = None
    return card_from_json(value, source=source)


def card_from_json(value: object, *, source: str) -> PublicCard:
    """As `parse_card`, from a JSON value."""
    if not isinstance(value, dict) or value.get("kind") != "veilray public card":
        raise DataError(f"{source} is not a public card of Veilray; ask its owner for a new copy")
    if value.get("schema_version") != SCHEMA_VERSION:
        raise DataError(f"{source} is a card of another version; this Veilray reads version {SCHEMA_VERSION}")
    shapes = {"name": _NAME, "signing_key": _HEX_32, "age_recipient": _AGE, "signature": _HEX_64}
    fields = {key: value.get(key) for key in shapes}
    texts = {key: text for key, text in fields.items() if isinstance(text, str) and shapes[key].fullmatch(text)}
    if len(texts) == len(shapes) and set(value) == {*shapes, "schema_version", "kind", "fingerprint"}:
        card = PublicCard(**texts)
        if value["fingerprint"] == card.fingerprint and _is_whole(card):
            return card
    raise DataError(f"{source} is a damaged or altered card; ask its owner for a new copy")


def _is_whole(card: PublicCard) -> bool:
    import pyrage
    from cryptography.exceptions import InvalidSignature

    try:
        pyrage.x25519.Recipient.from_str(card.age_recipient)
        signed = _signed(card.name, card.signing_key, card.age_recipient)
        card.public_key().verify(bytes.fromhex(card.signature), signed)
    except (InvalidSignature, ValueError, pyrage.RecipientError):
        return False
    return True


def _signed(name: str, signing_key: str, age_recipient: str) -> bytes:
    return _LABEL + json.dumps([SCHEMA_VERSION, name, signing_key, age_recipient]).encode()
