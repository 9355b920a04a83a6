"""An exported model: a network without its run, as one site seals it and the other opens it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from veilray.errors import RunError
from veilray.files import read_json, sha256_file
from veilray.metrics.interval import Interval
from veilray.models.config import ModelConfig
from veilray.models.weights import WEIGHTS_FILE
from veilray.obfuscation.config import NoiseConfig

MODEL_RECORD = "model.json"
MODEL_CARD = "MODEL_CARD.md"
MODEL_FILES = (MODEL_RECORD, MODEL_CARD, WEIGHTS_FILE)
"""All that an exported model consists of."""

_MOST_BYTES = 2**20


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DataCounts(_Record):
    """How much data a model has seen."""

    train_images: int = Field(ge=0)
    train_patients: int = Field(ge=0)
    validation_images: int = Field(ge=0)
    validation_patients: int = Field(ge=0)
    public_images: int = Field(default=0, ge=0)
    """Clean public images that stood beside those of training."""


class Score(_Record):
    """Means over the images of a set, with intervals clustered by patient."""

    images: int = Field(ge=0)
    patients: int = Field(ge=0)
    split: Literal["train", "validation", "test"]
    confidence: float = Field(gt=0.0, lt=1.0)
    psnr: dict[Literal["noisy", "model"], Interval]
    """In dB, output clamped to [0, 1]."""
    ssim: dict[Literal["noisy", "model"], Interval]


class SeenRelease(_Record):
    """The release that a model was trained on, by what its receiver and its maker both know of it."""

    release_id: str = Field(pattern=r"^[0-9a-f]{32}$")
    digest: str = Field(pattern=r"^[0-9a-f]{64}$")


class ModelRecord(_Record):
    """`model.json`."""

    schema_version: Literal[1] = 1
    veilray: str = Field(max_length=64)
    """Version that trained."""
    weights_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """SHA-256 of `weights.safetensors`."""
    model: ModelConfig
    noise: NoiseConfig
    """The noise that the model was trained to take away."""
    parameters: int = Field(ge=1)
    epochs: int = Field(ge=1)
    loss: str = Field(pattern=r"^[a-z0-9_]{1,32}$")
    """Name of the training loss."""
    data: DataCounts
    score: Score | None
    """As measured where it was trained; None where it was not."""
    release: SeenRelease | None = None
    """None where it was trained on a cohort, of which nothing is said, or an older Veilray sealed it."""
    config: dict[str, Any] | None = None
    """The configuration of its training: numbers and choices, no text; None where an older Veilray sealed it."""


def is_exported(folder: Path) -> bool:
    """Whether a folder holds an exported model."""
    return (folder / MODEL_RECORD).is_file()


def read_exported(folder: Path) -> ModelRecord:
    """What `model.json` of an exported model says; RunError where it is damaged, or not of the weights beside it."""
    path = folder / MODEL_RECORD
    if path.stat().st_size > _MOST_BYTES:
        raise RunError(f"{path} is no record of a model: it is larger than {_MOST_BYTES:,} bytes")
    try:
        record = ModelRecord.model_validate(read_json(path))
    except ValidationError as error:
        fault = error.errors(include_input=False)[0]
        where = ".".join(str(part) for part in fault["loc"])
        raise RunError(f"{path} does not fit its schema ({where}: {fault['msg']}); open the bundle again") from None
    if not (folder / WEIGHTS_FILE).is_file() or sha256_file(folder / WEIGHTS_FILE) != record.weights_sha256:
        raise RunError(f"{path} is not of the weights beside it, or they are missing; open the bundle again")
    return record
