"""What an audit found: a record for each figure, one for each thing that was not measured, and `audit.json` of all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from veilray.errors import RunError
from veilray.files import read_json, write_json

AUDIT_FILE = "audit.json"

FEW_PATIENTS = 30
"""A figure from fewer patients than this says so in its own record."""

Finite = Annotated[float, Field(allow_inf_nan=False)]

NoiseWay = Literal["fresh", "seeded", "secret"]
"""How noise is made: anew for each release, from a seed that can be guessed, from a site's secret."""

Role = Literal["attacker", "part", "baseline"]
"""In its own right, a part of another attacker, or one that sees no pixels."""


class AuditModel(BaseModel):
    """Base of every record of an audit: frozen, and without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Difference(AuditModel):
    """By how much one figure exceeds another, with the 95 % interval of the difference over the same resamples."""

    value: Finite
    low: Finite | None
    high: Finite | None


class AttackResult(AuditModel):
    """One figure of one attack on one variant of the images.

    A success is a lower bound: another attacker may do better. `notes` of a figure from fewer than 30 patients begin
    by saying so, whoever made it.
    """

    kind: Literal["result"] = "result"
    attack: str = Field(min_length=1)
    """Family of the attack, such as `re-identification`."""
    attacker: str = ""
    """Who attacks where a family has several, such as `verification network` or `sex, view and age alone`."""
    role: Role = "attacker"
    weakened: str = ""
    """What the attacker lacks that it might have had; empty where nothing."""
    variant: str = Field(min_length=1)
    """Name of the images that were attacked, `Variant.name`."""
    metric: str = Field(min_length=1)
    """Such as `auc`, `precision_at_1` or `psnr`."""
    unit: Literal["", "share", "dB"] = ""
    """Of the value: a share from 0 to 1, decibels, or none."""
    value: Finite
    low: Finite | None
    """Lower end of the 95 % interval over patients; None where there are too few for one."""
    high: Finite | None
    chance: Finite | None = None
    """What guessing gives, where that is a number."""
    predicted: Finite | None = None
    """What a closed form says, where there is one."""
    predicted_at_least: bool = False
    """Whether what is predicted is a lower bound."""
    deviation: Finite | None = None
    """Measured minus predicted, in standard deviations of what the noise makes of it."""
    matched_on: tuple[str, ...] = ()
    """In what both images of every pair agree; empty where pairs are not matched."""
    above_metadata: Difference | None = None
    """By how much it exceeds what the metadata alone reach over the same pairs."""
    noise: Literal["", NoiseWay] = ""
    """How the noise was made that the attack was tried on; empty for the variant's own."""
    count: int | None = None
    """Releases that were averaged, or seeds that were tried."""
    n_images: int = Field(ge=1)
    n_patients: int = Field(ge=1)
    """Of membership inference the smaller number of members and others: no more bear the figure."""
    n_pairs: int | None = None
    """Pairs of images that were compared, where the attack compares pairs."""
    seeds: tuple[int, ...] = ()
    """Seeds that the value is averaged over; empty where nothing is drawn."""
    notes: tuple[str, ...] = ()
    curve: tuple[tuple[Finite, Finite], ...] | None = None
    """Points (x, y) to draw, such as the false and the true positive rates of a ROC curve."""

    @model_validator(mode="before")
    @classmethod
    def _say_few_patients(cls, given: Any) -> Any:
        if not isinstance(given, dict) or not isinstance(given.get("n_patients"), int):
            return given
        count, notes = given["n_patients"], tuple(given.get("notes") or ())
        warning = few_patients_note(count)
        if count >= FEW_PATIENTS or warning in notes:
            return given
        return {**given, "notes": (warning, *notes)}


class Skipped(AuditModel):
    """Something that was not measured, and why: what the report lists as not tested."""

    kind: Literal["skipped"] = "skipped"
    attack: str = Field(min_length=1)
    reason: str = Field(min_length=1)
    """One sentence without a full stop."""
    variant: str = ""
    """The images in question; empty where it is all of them."""


Outcome = Annotated[AttackResult | Skipped, Field(discriminator="kind")]
"""What an attack gives back, any number of them."""


class FormalLine(AuditModel):
    """What the noise of one level means for one adjacency, by the analytic Gaussian mechanism."""

    std: Finite
    adjacency: str
    """What the two images may differ in."""
    sensitivity: Finite
    """Largest L2 distance of two such images, pixels in [0, 1]."""
    mu: Finite
    """Of Gaussian differential privacy: sensitivity / std."""
    epsilon: Finite
    """At the audit's delta."""


class FormalLevel(AuditModel):
    """What one level of noise protects."""

    name: str
    """The variant, or the composition, that it speaks of."""
    std: Finite
    protected_at_1: Finite
    """L2 distance between images that is protected at epsilon = 1."""
    protected_at_8: Finite
    lines: tuple[FormalLine, ...]
    notes: tuple[str, ...] = ()


class FormalSide(AuditModel):
    """The formal side of an audit."""

    delta: Finite
    height: int
    width: int
    grey_step: Finite
    """One grey level of the originals, in units of the [0, 1] range."""
    needed_std_at_1: Finite
    """Standard deviation that would protect any image at epsilon = 1."""
    needed_std_at_8: Finite
    levels: tuple[FormalLevel, ...]


LEDGER = "the ledger"
"""How the source of a composition begins that knows of all releases."""


class Composition(AuditModel):
    """What has left of the images, over all their releases."""

    source: str
    """What knows of the releases: the ledger, or the releases that were named."""
    acquisitions: int
    """How many of the audited images left at all."""
    least_std: Finite
    """Composed over all releases, of the image that is protected least; 0 where clean pixels left."""
    median_std: Finite
    notes: tuple[str, ...] = ()
    """What was taken for granted, each a sentence without a full stop."""

    @property
    def by_ledger(self) -> bool:
        """Whether the ledger was asked what left before."""
        return self.source.startswith(LEDGER)


class AuditedRelease(AuditModel):
    """How much of a release was audited."""

    digest: str
    variant: str
    """Name of its images."""
    noise: NoiseWay
    audited: int
    """Images of it that were attacked."""
    total: int
    """Images that it holds."""


class Audited(AuditModel):
    """What was audited."""

    originals_digest: str
    releases: tuple[AuditedRelease, ...]
    """None where noise was made for the audit alone."""
    n_images: int
    n_patients: int
    n_with_follow_ups: int
    """Patients with two images or more."""
    height: int
    width: int
    variants: dict[str, Literal["clean", "noisy", "denoised", "baseline"]]
    """Name and kind of each."""
    restored: dict[str, str] = Field(default_factory=dict)
    """Of each variant that a network restored, the one that it was restored from."""
    restorer_steps: int = 0
    """Steps of each network that was trained to undo one of the variants; 0 where none was."""
    holds_clean: bool = False
    """Whether the release holds the clean images too: then nothing protects them."""
    subtractable: bool = False
    """Whether the release's noise was made from a seed, by which it can be subtracted."""
    left_out: tuple[str, ...] = ()
    """Which images the audit left out, and why."""
    labels_known: tuple[str, ...] = ()
    """Of how many images sex, view and age are known, where that is not all."""

    @property
    def release_digests(self) -> tuple[str, ...]:
        """Of the releases that were audited."""
        return tuple(one.digest for one in self.releases)


class Breach(AuditModel):
    """A limit of the policy that a figure exceeded, or that could not be checked."""

    rule: str
    """The rule in words."""
    reason: str
    """What was found, with the figure."""


class GateOutcome(AuditModel):
    """What the policy said."""

    policy_sha256: str
    passed: bool
    words: str
    """What a pass says: no more than what its limits are about."""
    rules: int
    breaches: tuple[Breach, ...]
    notes: tuple[str, ...] = ()
    """What the limits would have held for and what there was none of, each a sentence without a full stop."""


class Audit(AuditModel):
    """`audit.json`."""

    schema_version: Literal[1] = 1
    veilray: str
    code: str
    """SHA-256 of the code that decides the figures."""
    effort: str
    seeds: tuple[int, ...]
    confidence: float = 0.95
    started: str
    """UTC, ISO 8601."""
    seconds: float
    """Wall time of what this run computed; what was reused from an earlier one is not in it."""
    device: str
    audited: Audited
    formal: FormalSide | None
    composition: Composition | None = None
    outcomes: tuple[Outcome, ...]
    gate: GateOutcome | None = None

    @property
    def results(self) -> list[AttackResult]:
        """The figures."""
        return [one for one in self.outcomes if isinstance(one, AttackResult)]

    @property
    def skipped(self) -> list[Skipped]:
        """What was not tested."""
        return [one for one in self.outcomes if isinstance(one, Skipped)]


def few_patients_note(count: int) -> str:
    """What a figure from few patients says of itself."""
    return f"from only {count} patient{'s' if count != 1 else ''}, fewer than {FEW_PATIENTS}"


def write_audit(folder: Path, audit: Audit) -> Path:
    """Write `audit.json` into `folder`, whole or not at all; its path."""
    path = folder / AUDIT_FILE
    write_json(path, audit.model_dump(mode="json"))
    return path


def read_audit(folder: Path) -> Audit:
    """The audit in a folder; RunError where there is none or it is damaged."""
    path = folder / AUDIT_FILE
    if not path.is_file():
        raise RunError(f"{folder} holds no {AUDIT_FILE}; run: veilray audit RELEASE --originals COHORT --out {folder}")
    try:
        return Audit.model_validate(read_json(path))
    except ValidationError as error:
        raise RunError(f"{path} does not fit its schema ({error.error_count()} faults); audit again") from None


def find_results(
    outcomes: Sequence[AttackResult | Skipped], *, attack: str, metric: str, variant: str | None = None
) -> list[AttackResult]:
    """The figures of one attack and metric, of one variant or of all, in their order."""
    return [
        one
        for one in outcomes
        if isinstance(one, AttackResult)
        and (one.attack, one.metric) == (attack, metric)
        and variant in (None, one.variant)
    ]
