"""The configuration of the receiving server: where it listens, where bundles go, and who may send what."""

from __future__ import annotations

import ssl
import tomllib
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from veilray.errors import DataError, UsageError, first_fault
from veilray.exchange.keys.card import PublicCard, read_card

GB = 1e9
Gigabytes = Annotated[float, Field(gt=0.0, le=1e6, allow_inf_nan=False)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SenderConfig(_Section):
    """`[[senders]]`: one site that may send."""

    card: Path
    """Its public card; its name names the folder of its bundles."""
    certificates: tuple[Path, ...] = Field(min_length=1)
    """Client certificates, PEM, one of which its connections must show; two while it changes them."""
    quota_gb: Gigabytes = 50.0
    """Most that may lie here of it, uploads that have begun included, in 10^9 bytes."""
    largest_gb: Gigabytes = 20.0
    """Largest bundle that it may send, in 10^9 bytes."""


class ReceiveConfig(_Section):
    """`veilray receive CONFIG.toml`. Paths are relative to the file."""

    spool: Path
    """Folder for what is received."""
    host: str = "127.0.0.1"
    """Address to listen on; loopback unless told otherwise."""
    port: int = Field(default=8443, ge=0, le=65_535)
    """Port; 0 takes a free one."""
    authority: Path
    """Certificate authority of the clients, PEM."""
    certificate: Path
    """The server's certificate, PEM, intermediate ones included."""
    key: Path
    """Its private key, PEM, readable by its owner only."""
    keep_free_gb: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 1.0
    """Space that is never filled, in 10^9 bytes."""
    patience_seconds: float = Field(default=60.0, gt=0.0, le=3600.0)
    """A client must end its TLS handshake, send a request's header, and each 1 MiB of a body, each in this time."""
    max_connections: int = Field(default=64, ge=2, le=4096)
    """Requests at once; more are answered 503. As many connections may be in their handshake, the silent ones go, and
    three times as many open in all."""
    senders: tuple[SenderConfig, ...] = Field(min_length=1)
    """Who may send, and how much."""


@dataclass(frozen=True, kw_only=True)
class Sender:
    """A site that may send, its card and certificates read."""

    card: PublicCard
    """The site's pinned card."""
    certificates: frozenset[str]
    """SHA-256 of the certificates' DER encoding, in hexadecimal."""
    quota: int
    """Bytes."""
    largest: int
    """Bytes."""


def load_receive_config(path: Path) -> ReceiveConfig:
    """Read the TOML file; UsageError where it is missing, or a key is unknown or of the wrong kind."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{path} is missing; see docs/how-to/send-and-receive.md") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, IsADirectoryError) as error:
        raise UsageError(f"{path} is not valid TOML: {error}") from None
    try:
        config = ReceiveConfig.model_validate(values)
    except ValidationError as error:
        raise UsageError(f"{path}: {first_fault(error)}") from None
    base = path.parent
    senders = tuple(
        sender.model_copy(
            update={"card": base / sender.card, "certificates": tuple(base / file for file in sender.certificates)}
        )
        for sender in config.senders
    )
    files = {name: base / getattr(config, name) for name in ("spool", "authority", "certificate", "key")}
    return config.model_copy(update={**files, "senders": senders})


def read_senders(config: ReceiveConfig) -> list[Sender]:
    """The senders with their cards and certificates; UsageError where two share a name or a certificate."""
    senders = [
        Sender(
            card=read_card(sender.card),
            certificates=frozenset(certificate_digest(file) for file in sender.certificates),
            quota=int(sender.quota_gb * GB),
            largest=int(sender.largest_gb * GB),
        )
        for sender in config.senders
    ]
    names = [sender.card.name.casefold() for sender in senders]
    shown = [digest for sender in senders for digest in sender.certificates]
    if len(set(names)) < len(names) or len(set(shown)) < len(shown):
        raise UsageError("two senders have the same name or certificate; each needs its own")
    return senders


def certificate_digest(path: Path) -> str:
    """SHA-256 of the first certificate in a PEM file; DataError where there is none."""
    try:
        text = path.read_text(encoding="ascii")
        start = text.index("-----BEGIN CERTIFICATE-----")
        end = text.index("-----END CERTIFICATE-----", start) + len("-----END CERTIFICATE-----")
        return sha256(ssl.PEM_cert_to_DER_cert(text[start:end])).hexdigest()
    except (OSError, ValueError):
        raise DataError(f"{path} is missing or holds no certificate in PEM") from None
