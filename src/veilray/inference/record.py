"""`denoised.json`: which model made the images of a folder, and how; beside the PNG files of `veilray denoise`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)

import veilray
from veilray.cohort.records import ReleasedNoise
from veilray.errors import DataError
from veilray.files import read_json, write_json
from veilray.images.derived import Provenance

DENOISED_RECORD = "denoised.json"


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DenoiseSettings(_Record):
    """What decides the pixels, besides the weights."""

    mean: float | None = Field(allow_inf_nan=False)
    """Mean of the noise as given; None where it was the release's or the run's own."""
    std: float | None = Field(default=None, gt=0.0, allow_inf_nan=False)
    """Standard deviation of the noise as given; None where it was the release's or estimated, or made no difference."""
    tile: int = Field(ge=1)
    """Side of the largest square that went through the network at once."""
    precision: Literal["fp32", "bf16"]
    """Arithmetic of the network."""
    head: int | None = Field(default=None, ge=1)
    """Head of a U-Net++ that was taken; None for the last."""

    @model_serializer(mode="wrap")
    def _without_what_was_not_given(self, write: SerializerFunctionWrapHandler) -> dict[str, object]:
        # UIDs are made of these settings: a std that was not given must leave them what they were before it existed.
        fields: dict[str, object] = write(self)
        return {name: value for name, value in fields.items() if name != "std" or value is not None}


class DenoisedRelease(_Record):
    """The release that images came from."""

    release_id: str = Field(pattern=r"^[0-9a-f]{32}$")
    digest: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    """Over its files and its noise: the same for the same noisy images, released again. None in schema 1."""
    noise: ReleasedNoise

    @property
    def content(self) -> str:
        """What stands for the noisy images in the UIDs of what was made of them."""
        return self.digest or self.release_id


class DenoisedBatch(_Record):
    """Images denoised alike."""

    veilray: str = Field(pattern=r"^[0-9A-Za-z.+-]{1,32}$")
    """Version that denoised."""
    weights_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """SHA-256 of the weights file."""
    settings: DenoiseSettings
    release: DenoisedRelease | None = None
    """Where the images came from a release."""
    began: AwareDatetime
    """When the first call of these settings began."""
    files: tuple[str, ...] = ()
    """Names of the PNG files; nothing else is said of an image."""

    def is_like(self, other: DenoisedBatch) -> bool:
        """Whether the images of both were made in the same way, whenever that was."""
        aside = {"files", "began"}
        return self.model_dump(exclude=aside) == other.model_dump(exclude=aside)

    def provenance(self) -> Provenance:
        """What a derived DICOM object says of these images."""
        decided = {"settings": self.settings.model_dump(), "release": self.release and self.release.content}
        return Provenance(
            veilray=self.veilray,
            weights=self.weights_sha256,
            settings=json.dumps(decided, sort_keys=True),
            description=_describe(self),
            when=self.began,
        )


class DenoisedRecord(_Record):
    """`denoised.json`."""

    schema_version: Literal[1, 2] = 2
    """1: written before it held the digest of a release."""
    batches: tuple[DenoisedBatch, ...]

    @property
    def files(self) -> tuple[str, ...]:
        """Names of all images, in order, each once."""
        return tuple(sorted({name for batch in self.batches for name in batch.files}))


def new_batch(
    *, weights_sha256: str, settings: DenoiseSettings, release: DenoisedRelease | None = None
) -> DenoisedBatch:
    """A batch of this version of Veilray, of now, without images yet."""
    return DenoisedBatch(
        veilray=veilray.__version__,
        weights_sha256=weights_sha256,
        settings=settings,
        release=release,
        began=datetime.now(UTC).replace(microsecond=0),
    )


def read_denoised(folder: Path) -> DenoisedRecord:
    """The record of a folder of denoised images; DataError where it is missing or damaged."""
    path = folder / DENOISED_RECORD
    try:
        return DenoisedRecord.model_validate(read_json(path))
    except ValidationError:
        raise DataError(f"{path} does not fit its schema; denoise again, into a new folder") from None


def note_denoised(folder: Path, batch: DenoisedBatch, files: Sequence[str]) -> None:
    """Add images to the record of a folder, under `batch` or the one there that is like it.

    A name that another batch has is taken from it: its image is about to be made anew.
    """
    before = read_denoised(folder).batches if (folder / DENOISED_RECORD).exists() else ()
    moved = set(files)
    same = next((old for old in before if old.is_like(batch)), batch)
    names = tuple(sorted(moved | set(same.files)))
    others = [
        old.model_copy(update={"files": tuple(name for name in old.files if name not in moved)})
        for old in before
        if old is not same
    ]
    kept = [old for old in others if old.files]
    record = DenoisedRecord(batches=(*kept, same.model_copy(update={"files": names})))
    write_json(folder / DENOISED_RECORD, record.model_dump(mode="json"))


def _describe(batch: DenoisedBatch) -> str:
    by = f"by a neural network (Veilray {batch.veilray}, weights of SHA-256 {batch.weights_sha256})"
    if batch.release is None:
        return f"Denoised {by}."
    noise = batch.release.noise
    std = f"{noise.std:g}" if isinstance(noise.std, float) else f"{noise.std[0]:g} to {noise.std[1]:g}"
    law = f"mean {noise.mean:g}, standard deviation {std} of the range{', clamped' if noise.clip else ''}"
    return f"Gaussian noise ({law}) was added to let the image leave its site, and taken away {by}."
