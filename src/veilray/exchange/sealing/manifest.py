"""What a bundle says of itself: the manifest, signed by its sender and kept inside the encryption.

The signature is Ed25519 (RFC 8032) over the bytes of `manifest.json` as they stand in the bundle; no other message that
Veilray signs begins with the same bytes.
"""

from __future__ import annotations

import json
import re
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

from veilray.errors import BundleError, first_fault

MANIFEST = "manifest.json"
SIGNATURE = "manifest.sig"
SIGNATURE_BYTES = 64

MAX_PARTS = 150_000
"""Parts of one bundle: denoised images are a file each, and the largest public collections have some 112,000."""
MAX_MANIFEST_BYTES = 32 * 2**20
MAX_RECEIVERS = 64
MAX_SEQUENCE = 2**53
"""Sequences stay below it, so that every JSON reader has them exactly."""

Kind = Literal["release", "model", "denoised", "evaluation"]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

# The names that a kind may bring, and no other: flat, so that no part can leave the folder it is opened into.
PART_NAMES: dict[Kind, re.Pattern[str]] = {
    "release": re.compile(r"release\.json|index\.csv|(noisy|clean)-[1-9]\d{0,5}x[1-9]\d{0,5}-uint(8|16)\.npy"),
    "model": re.compile(r"weights\.safetensors|model\.json|MODEL_CARD\.md"),
    "denoised": re.compile(r"denoised\.json|[0-9a-f]{32}\.png"),
    "evaluation": re.compile(r"evaluation\.json|EVALUATION\.md"),
}


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Part(_Record):
    """One file of a bundle."""

    name: str = Field(max_length=99)
    size: int = Field(ge=0, le=2**42)
    """Bytes."""
    sha256: Sha256


class Manifest(_Record):
    """`manifest.json` of a bundle."""

    format: Literal["veilray-bundle"] = "veilray-bundle"
    schema_version: Literal[1] = 1
    bundle_id: str = Field(pattern=r"^[0-9a-f]{32}$")
    """Random."""
    sender: Sha256
    """Fingerprint of the sender's card; its signing key signed this manifest."""
    receivers: tuple[Sha256, ...] = Field(min_length=1, max_length=MAX_RECEIVERS)
    """Fingerprints of the cards that it is sealed for; nobody else's `open` takes it."""
    sequence: int = Field(ge=1, lt=MAX_SEQUENCE)
    """Grows from bundle to bundle of one sender; the second of sealing, or more."""
    sealed_at: AwareDatetime
    """When it was sealed, UTC."""
    kind: Kind
    parts: tuple[Part, ...] = Field(min_length=1, max_length=MAX_PARTS)
    """In the order in which they follow."""

    @model_validator(mode="after")
    def _names_fit(self) -> Manifest:
        names = [part.name for part in self.parts]
        foreign = [name for name in names if PART_NAMES[self.kind].fullmatch(name) is None]
        if foreign:
            raise ValueError(f"{len(foreign)} parts have names that a bundle of kind {self.kind} cannot have")
        if len(set(names)) != len(names):
            raise ValueError("two parts have the same name")
        return self

    @property
    def n_bytes(self) -> int:
        """Bytes of all parts."""
        return sum(part.size for part in self.parts)


def encode_manifest(manifest: Manifest) -> bytes:
    """The bytes that are signed: JSON, one line, UTF-8."""
    return (json.dumps(manifest.model_dump(mode="json"), separators=(",", ":")) + "\n").encode()


def decode_manifest(data: bytes) -> Manifest:
    """The manifest in bytes from outside, every field checked; BundleError where they are none."""
    try:
        return Manifest.model_validate_json(data)
    except ValidationError as error:
        raise BundleError(
            f"the bundle's manifest is not one that this Veilray reads ({first_fault(error)})", reason="manifest"
        ) from None
