"""What a sender signs of an upload: size and hash of the encrypted file, so that the receiving server needs no key.

A ticket says nothing of what is in the bundle. The server takes an upload only with a ticket by the sender whose
certificate the connection shows, and keeps it only if it has that hash.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from veilray.errors import BundleError, UsageError
from veilray.exchange.keys.keyfile import AGE_HEADER
from veilray.exchange.sealing.manifest import Sha256

if TYPE_CHECKING:
    from veilray.exchange.keys.folder import KeyFolder, PublicCard

MAX_TICKET_BYTES = 4096


class Ticket(BaseModel):
    """An upload, as its sender signs it."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format: Literal["veilray-transfer"] = "veilray-transfer"
    schema_version: Literal[1] = 1
    sender: Sha256
    """Fingerprint of the sender's card."""
    sha256: Sha256
    """Of the encrypted file; it names the upload."""
    size: int = Field(ge=1, le=2**42)
    """Bytes of the encrypted file."""

    def signed_bytes(self) -> bytes:
        """What the signature is over; it begins otherwise than a bundle's manifest and a card."""
        return b"veilray ticket\n" + json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()


class SignedTicket(BaseModel):
    """A ticket with its Ed25519 signature (RFC 8032), in hexadecimal."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    ticket: Ticket
    signature: str = Field(pattern=r"^[0-9a-f]{128}$")


def make_ticket(bundle: Path, *, keys: KeyFolder) -> SignedTicket:
    """The ticket of a bundle file. UsageError where it is missing or no bundle."""
    if not bundle.is_file():
        raise UsageError(f"{bundle} is missing or not a file; make it with: veilray seal")
    with bundle.open("rb") as stream:
        if stream.read(len(AGE_HEADER)) != AGE_HEADER:
            raise UsageError(f"{bundle} is not encrypted, so it is not sent; make a bundle with: veilray seal")
        stream.seek(0)
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        ticket = Ticket(sender=keys.card.fingerprint, sha256=digest, size=stream.tell())
    return SignedTicket(ticket=ticket, signature=keys.signing_key().sign(ticket.signed_bytes()).hex())


def check_ticket(data: bytes, *, card: PublicCard) -> Ticket:
    """The ticket in bytes from outside; BundleError where it is none, or not signed by the owner of `card`."""
    from cryptography.exceptions import InvalidSignature

    try:
        signed = SignedTicket.model_validate_json(data[: MAX_TICKET_BYTES + 1])
    except ValidationError:
        raise BundleError("the ticket of the upload is not one that this Veilray reads", reason="ticket") from None
    if signed.ticket.sender != card.fingerprint:
        raise BundleError(f"the ticket is not from {card.name}, whose certificate came with it", reason="sender")
    try:
        card.public_key().verify(bytes.fromhex(signed.signature), signed.ticket.signed_bytes())
    except InvalidSignature:
        raise BundleError(f"the signature of the ticket is not {card.name}'s", reason="signature") from None
    return signed.ticket
