"""The card of a network that ships in the package: its use, its data, what it reached, and its limits."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from veilray.metrics.interval import Interval
from veilray.obfuscation.config import NoiseConfig

STATEMENT = "Not a medical device: for research, not for diagnosis. It can remove findings and invent structures."

Digest = Field(pattern=r"^[0-9a-f]{64}$")


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class CardData(_Record):
    """What a network was trained on."""

    name: str
    """Name of the data set, and which part of it."""
    source: str
    """Where the data set can be had."""
    licence: str
    """Licence or terms of the data set."""
    train_images: int = Field(ge=1)
    train_patients: int = Field(ge=1)
    validation_images: int = Field(ge=1)
    """Images that the weights were chosen by."""
    validation_patients: int = Field(ge=1)
    cohort_digest: str = Digest
    """Digest of the cohort, of which only the training and validation images were looked at."""


class CardScore(_Record):
    """What a network reached on images that it had not seen."""

    data: str
    """Name of the data set and the set of it."""
    n_images: int = Field(ge=1)
    n_patients: int = Field(ge=1)
    noise: NoiseConfig
    """The noise that was added."""
    confidence: float = Field(gt=0.0, lt=1.0)
    metrics: dict[str, Interval]
    """metric -> mean over the images with its interval, clustered by patient."""


class CardSpeed(_Record):
    """How fast a network was measured to be."""

    device: str
    """Hardware, with the number of threads."""
    height: int = Field(ge=1)
    width: int = Field(ge=1)
    images_per_second: float = Field(gt=0.0)


class Card(_Record):
    """`NAME.json` beside `NAME.safetensors`."""

    schema_version: Literal[1] = 1
    name: str = Field(pattern=r"^[a-z][a-z0-9_-]{0,31}$")
    summary: str
    """What it is, in a sentence."""
    intended_use: str
    limits: tuple[str, ...] = Field(min_length=1)
    medical_device: Literal[False]
    licence: str
    """Licence of the weights."""
    data: CardData
    config: dict[str, Any]
    """The configuration of the last sitting of the training; those before it lie in benchmarks/models."""
    config_digest: str = Digest
    """SHA-256 of `config` as JSON with sorted keys."""
    parameters: int = Field(ge=1)
    weights_sha256: str = Digest
    weights_bytes: int = Field(ge=1)
    scores: tuple[CardScore, ...]
    speed: tuple[CardSpeed, ...]
    trained_by: str
    """Version of Veilray that trained it."""

    @model_validator(mode="after")
    def _digest_is_that_of_the_configuration(self) -> Card:
        if config_digest(self.config) != self.config_digest:
            raise ValueError("config_digest is not the digest of config")
        return self


def config_digest(config: dict[str, Any]) -> str:
    """SHA-256 of a configuration as JSON with sorted keys, in hexadecimal."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()
