"""What the release ledger is asked and what it answers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from veilray.errors import UsageError
from veilray.exchange.ledger.exposure import Given, Mode, NoiseSource, composed_std

EVALUATION_SEALED = "evaluation sealed"
"""How the event begins that notes an evaluation which left."""
DENOISED_SEALED = "denoised images sealed"
"""How the event begins that notes denoised images of a release which left."""

Status = Literal["reserved", "committed", "abandoned"]


@dataclass(frozen=True, kw_only=True)
class Release:
    """What is to leave, as a whole."""

    release_id: str
    receivers: tuple[str, ...]
    """Fingerprints of the receivers' cards; empty where not known."""
    mode: Mode
    source: NoiseSource
    """Seeded and entropy noise is independent in each release; only secret noise nests."""
    noise_id: str = ""
    """`KeyFolder.noise_id()` of secret noise."""
    clip: bool = True
    mean: float | None = None
    """Of its noise; None where no image leaves, or an older ledger did not keep it."""


@dataclass(frozen=True, kw_only=True)
class Image:
    """One image of a release."""

    sop_uid: str
    """SOP Instance UID (0008,0018); empty where there is none."""
    digest: bytes
    """32 bytes over the native decoded pixels, before preprocessing."""
    likeness: bytes
    """`likeness.likeness` of its pixels before the noise."""
    geometry: str
    """All that was done to the native pixels before the noise, as `secret_field` takes it; kept in clear."""
    std: float
    """Of its noise; 0 is allowed for model-only alone."""
    name: tuple[str, str] | None = None
    """Patient and image, as their site names them, where there is no UID: the same name is the same acquisition."""
    label: str = ""
    """How a refusal names it to the operator; not kept."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model that is to leave without any image, in mode model-only."""

    weights_sha256: str
    """Of the weights as they are sealed, in hexadecimal."""
    training_digest: str
    """Digest of the cohort or release that it was trained on; kept under a keyed hash."""
    images: int
    """Acquisitions that it was trained on or chosen by."""
    patients: int
    """Whose they are."""


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """An evaluation whose means are to leave."""

    weights_sha256: str
    """Of the weights that were evaluated, in hexadecimal."""
    release_id: str | None
    """The release that they were evaluated on; None where it was a cohort."""
    release_digest: str
    """Its digest, as `release.json` says it; that of a cohort is not kept."""

    def event(self, receivers: Iterable[str]) -> str:
        """How the ledger notes that its means left."""
        return f"{EVALUATION_SEALED}: of weights {self.weights_sha256}, for {', '.join(sorted(receivers))}"


@dataclass(frozen=True, kw_only=True)
class ModelLine:
    """What the ledger knows of a model that left."""

    weights_sha256: str
    trained_on: str
    """`Ledger.data_tag` of its training data, in hexadecimal: models of the same data have the same one."""
    patients: int


@dataclass(frozen=True, kw_only=True)
class Override:
    """Who answers for a release that the ledger would refuse, and why it is right all the same; kept."""

    name: str
    reason: str


@dataclass(frozen=True)
class Objection:
    """An image that may not leave, and why."""

    label: str
    reason: str
    index: int
    """Which of the images that were asked about, from 0."""


@dataclass(frozen=True, kw_only=True)
class Reserved:
    """What a reservation found."""

    objections: tuple[Objection, ...]
    """Those that were overridden."""
    voided: tuple[str, ...]
    """Earlier noisy releases of which a release of pairs gives clean pixels away."""


@dataclass(frozen=True, kw_only=True)
class ReleaseLine:
    """A release as the ledger lists it."""

    release: Release
    made: str
    """UTC, ISO 8601."""
    status: Status
    images: int
    """That left; of a model, those that it was trained on or chosen by."""
    least_std: float
    """0 where none left."""
    digest: str = ""
    """Of the whole release, as `release.json` says it; empty where an older ledger did not keep it."""
    model: ModelLine | None = None


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happened to a release: reserved, committed, abandoned, overridden, settled."""

    at: str
    release_id: str
    what: str
    name: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Exposure:
    """What has left of one acquisition, reservations included."""

    acquisition: int
    """Its number in this ledger."""
    given: tuple[Given, ...]

    @property
    def std(self) -> float:
        """Composed over everything: infinity where no image left, 0 where clean pixels did."""
        return composed_std(self.given)


def check_request(release: Release, images: Sequence[Image], override: Override | None) -> None:
    """UsageError where a reservation is not asked for properly."""
    if not images:
        raise UsageError("a release of no images cannot be written down")
    if release.source == "secret" and release.mode != "model-only" and not release.noise_id:
        raise UsageError("secret noise needs the name of its secret")
    if release.mode != "model-only" and not all(image.std > 0 for image in images):
        raise UsageError("every image of a release has noise of a positive std")
    if release.mode != "model-only" and release.mean is None:
        raise UsageError("the noise of a release has a mean")
    if override is not None and not (override.name.strip() and override.reason.strip()):
        raise UsageError("an override needs the name of who answers for it, and the reason")
