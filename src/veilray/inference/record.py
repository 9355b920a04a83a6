"""`denoised.json`: which model made the images of a folder, and how; beside the PNG files of `veilray denoise`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

import veilray
from veilray.errors import DataError
from veilray.files import read_json, write_json

DENOISED_RECORD = "denoised.json"


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DenoiseSettings(_Record):
    """What decides the pixels, besides the weights."""

    mean: float | None = Field(allow_inf_nan=False)
    """Mean of the noise as given; None where it was the release's or the run's own."""
    tile: int = Field(ge=1)
    """Side of the largest square that went through the network at once."""
    precision: Literal["fp32", "bf16"]
    """Arithmetic of the network."""
    head: int | None = Field(default=None, ge=1)
    """Head of a U-Net++ that was taken; None for the last."""


class DenoisedBatch(_Record):
    """Images of one call."""

    veilray: str = Field(max_length=64)
    """Version that denoised."""
    weights_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """SHA-256 of the weights file."""
    settings: DenoiseSettings
    files: tuple[str, ...]
    """Names of the PNG files; nothing else is said of an image."""


class DenoisedRecord(_Record):
    """`denoised.json`."""

    schema_version: Literal[1] = 1
    batches: tuple[DenoisedBatch, ...]

    @property
    def files(self) -> tuple[str, ...]:
        """Names of all images, in order, each once."""
        return tuple(sorted({name for batch in self.batches for name in batch.files}))


def read_denoised(folder: Path) -> DenoisedRecord:
    """The record of a folder of denoised images; DataError where it is missing or damaged."""
    path = folder / DENOISED_RECORD
    try:
        return DenoisedRecord.model_validate(read_json(path))
    except ValidationError:
        raise DataError(f"{path} does not fit its schema; denoise again, into a new folder") from None


def note_denoised(folder: Path, files: Sequence[str], *, weights_sha256: str, settings: DenoiseSettings) -> None:
    """Add images to the record of a folder; calls with the same model, settings and version share an entry."""
    before = read_denoised(folder).batches if (folder / DENOISED_RECORD).exists() else ()
    batch = DenoisedBatch(veilray=veilray.__version__, weights_sha256=weights_sha256, settings=settings, files=())
    same = [old for old in before if old.model_copy(update={"files": ()}) == batch]
    names = sorted({*files, *(name for old in same for name in old.files)})
    others = tuple(
        old.model_copy(update={"files": tuple(name for name in old.files if name not in files)})
        for old in before
        if old not in same
    )
    record = DenoisedRecord(batches=(*others, batch.model_copy(update={"files": tuple(names)})))
    write_json(folder / DENOISED_RECORD, record.model_dump(mode="json"))
