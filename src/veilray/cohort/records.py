"""What `cohort.json` and `release.json` say: schemas and digests."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from veilray.cohort.split import Split
from veilray.errors import CohortError, DataError, first_fault
from veilray.files import read_json, sha256_file

COHORT_FILE = "cohort.json"
RELEASE_FILE = "release.json"
INDEX_FILE = "index.csv"

IdFrom = Literal["stem", "path"]

NoiseKind = Literal["secret", "entropy", "seeded"]
"""Where the noise of a release is from: a site's secret, the operating system's entropy, or a seed."""


# Names are joined to the folder's path: nothing but these may come from a folder that someone else made.
FileName = Annotated[str, Field(pattern=r"^(index\.csv|(pixels|noisy|clean)-\d+x\d+-uint(8|16)\.npy)$")]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FileRecord(_Record):
    """One file of the folder."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size: int = Field(ge=0)
    """Bytes."""


class SplitFileRecord(_Record):
    """The file that decided the split."""

    name: str
    sha256: str


class Preprocessing(_Record):
    """How the pixels and the split came about."""

    size: int | Literal["native"]
    """Height and width, or each image's own."""
    resampling: Literal["bicubic with antialiasing", "none"]
    shares: str
    """Shares of the patients in per cent, train/validation/test."""
    split_seed: int
    split_file: SplitFileRecord | None
    """Where a file decided the split, in place of the shares and the seed."""


class CohortRecord(_Record):
    """`cohort.json`."""

    schema_version: Literal[1, 2] = 2
    """1: imported before the index said more of patient and exposure than the view; those fields then are unknown."""
    veilray: str
    """Version that imported."""
    id_from: IdFrom = "stem"
    """What names an image that is no DICOM: the file's stem, or its path without the ending."""
    preprocessing: Preprocessing
    images: dict[Split, int]
    """Images in each set."""
    patients: dict[Split, int]
    """Patients in each set."""
    patients_unknown: int
    """Images whose patient is unknown; each counts as a patient."""
    rejected: int
    """Files that could not be used; `import_report.csv` says why."""
    left_out: int
    """Images that could have been used but were not; `import_report.csv` says why."""
    files: dict[FileName, FileRecord]
    digest: str
    """SHA-256 over the digests of the index and the pixel files and over the preprocessing."""


class Quantisation(_Record):
    """What a level of a noisy pixel file stands for: offset + step * level."""

    offset: float = Field(allow_inf_nan=False)
    step: float = Field(gt=0.0, allow_inf_nan=False)


_Std = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]


class ReleasedNoise(_Record):
    """The law of the noise: y = clip(x + n), n ~ N(mean, std^2)."""

    mean: float = Field(allow_inf_nan=False)
    std: _Std | tuple[_Std, _Std]
    """Standard deviation, or the range from which the index's `std` was drawn for each image."""
    clip: bool


class ReleaseRecord(_Record):
    """`release.json`: all that Site Two needs, and nothing that leads back."""

    schema_version: Literal[1, 2] = 2
    """1: written before it said where the noise was from and what the index says of the images."""
    release_id: str = Field(pattern=r"^[0-9a-f]{32}$")
    """Random; names the list of pseudonyms that stays at Site One."""
    noise: ReleasedNoise
    noise_source: NoiseKind = "entropy"
    photometric: Literal["MONOCHROME2"] = "MONOCHROME2"
    """Photometric interpretation (0028,0004) of the released pixels, whatever that of the originals: 0 is black."""
    quantisation: dict[Literal["uint8", "uint16"], Quantisation]
    """For each depth of the noisy pixels."""
    subtractable: bool
    """Whether the noise was made from a seed: whoever knows or guesses it recovers all pixels that were not clamped."""
    pairs: bool
    """Whether the clean images are in the release too."""
    fields: tuple[str, ...] = ()
    """Columns of the index that say something of an image beyond its names, set, size and place."""
    statement: str = ""
    """What the release gives away, in plain words."""
    images: dict[Split, int]
    patients: dict[Split, int]
    patients_unknown: int
    """How many images count as a patient of their own because nobody knows whose they are."""
    files: dict[FileName, FileRecord]
    digest: str
    """SHA-256 over the digests of the released files and over the noise."""


Record = TypeVar("Record", CohortRecord, ReleaseRecord)


def read_record(folder: Path, name: str, kind: type[Record]) -> Record:
    """The record of a cohort or release; CohortError where it is missing, damaged or does not fit its digest."""
    try:
        record = kind.model_validate(read_json(folder / name))
    except ValidationError as error:
        raise CohortError(f"{folder / name} does not fit its schema ({first_fault(error)})") from None
    except (DataError, OSError) as error:
        raise CohortError(str(error)) from None
    if record.digest != digest_of(record):
        raise CohortError(f"{folder / name} was altered: its digest does not fit what it says")
    return record


def digest_of(record: CohortRecord | ReleaseRecord) -> str:
    """SHA-256, in hexadecimal, over what decides every result: the files and how they came about."""
    files = {name: file.sha256 for name, file in record.files.items()}
    decided: dict[str, Any] = {"files": files}
    if isinstance(record, CohortRecord):
        decided["preprocessing"] = record.preprocessing.model_dump(mode="json")
    else:
        decided["noise"] = record.noise.model_dump(mode="json")
        decided["quantisation"] = {name: value.model_dump() for name, value in record.quantisation.items()}
    text = json.dumps(decided, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def with_digest(record: Record) -> Record:
    """The same record with its digest filled in."""
    return record.model_copy(update={"digest": digest_of(record)})


def record_files(folder: Path, names: Iterable[str]) -> dict[str, FileRecord]:
    """Digests and sizes of files in a folder."""
    return {
        name: FileRecord(sha256=sha256_file(folder / name), size=(folder / name).stat().st_size)
        for name in sorted(names)
    }


def check_file(folder: Path, name: str, record: FileRecord) -> None:
    """CohortError where a file is not, byte for byte, what was recorded."""
    path = folder / name
    if not path.is_file():
        raise CohortError(f"{path} is missing; copy or make the folder again")
    if path.stat().st_size != record.size or sha256_file(path) != record.sha256:
        raise CohortError(f"{path} was altered or damaged: its SHA-256 is not the recorded one; make the folder again")
