"""Make a release: what may leave is decided first, written down in the ledger, and only then written.

With keys the noise is drawn from the site's secret, the names are pseudonyms for one receiver, and the ledger decides
whether what leaves may leave. Without keys noise and names are random: nothing can be repeated, nothing is remembered
but the list of pseudonyms, and nobody composes what several releases give away.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from veilray.cohort.cohort import Cohort
from veilray.cohort.leaving import Contents, Leaving, in_order
from veilray.cohort.noise_source import NoiseSource, entropy_noise, seeded_noise
from veilray.cohort.obfuscate import WrittenRelease, write_release
from veilray.cohort.split import Shares, assign, parse_shares
from veilray.errors import CohortError, RefusedError, UsageError
from veilray.exchange.keys.card import PublicCard
from veilray.exchange.keys.folder import KeyFolder
from veilray.exchange.ledger.records import Image, Objection, Override, Release, Reserved
from veilray.exchange.release.deidentify import DEFAULT_FIELDS, FIELDS, Coded, Field, deidentify
from veilray.exchange.release.originals import Original, read_originals, released_matrix
from veilray.exchange.release.pseudonyms import Pseudonyms
from veilray.exchange.release.review import Blanks, Looked, look, write_quarantine
from veilray.exchange.sealing.sequences import logging_refusals
from veilray.images.radiograph import FloatImage
from veilray.obfuscation.config import NoiseConfig


@dataclass(frozen=True, kw_only=True)
class Parties:
    """Between whom a release passes; with them go secret noise, lasting pseudonyms and the ledger."""

    keys: KeyFolder
    """Of Site One."""
    receiver: PublicCard
    override: Override | None = None
    """Who answers for it if the ledger refuses."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is to be released, for whom, and how."""

    noise: NoiseConfig
    parties: Parties | None = None
    seed: int | None = None
    """Noise from a seed, for research: it can be subtracted."""
    pairs: bool = False
    """The clean images leave too."""
    consent_clean_images: bool = False
    """Said on purpose with `pairs`: no image privacy is left."""
    fields: tuple[Field, ...] = DEFAULT_FIELDS
    keep_rare_sizes: bool = False
    blanks: Blanks = field(default_factory=Blanks)
    reviewed: Path | None = None
    """CSV file of the images that a person looked at and lets go, whatever looks like text in them."""
    leave_out_refused: bool = False
    """Keep back what the ledger refuses, rather than refuse the whole."""


@dataclass(frozen=True, kw_only=True)
class ReleasePlan:
    """What would leave, all of it, and what is kept back; nothing is written yet."""

    cohort: Cohort
    request: Request
    contents: Contents
    source: NoiseSource
    kept_back: Sequence[tuple[Original, Looked]]
    """For review, since they may hold burned-in text."""
    notes: Sequence[str]
    """What was coarsened, suppressed or withheld, one sentence each."""
    ledger_release: Release
    """The release and its images as the ledger takes them."""
    ledger_images: Sequence[Image]

    def objections(self) -> list[Objection]:
        """What the ledger would refuse, as things stand; nothing without keys."""
        if self.request.parties is None:
            return []
        with self.request.parties.keys.ledger() as ledger:
            return ledger.examine(self.ledger_release, self.ledger_images)


@dataclass(frozen=True, kw_only=True)
class MadeRelease:
    """What `make_release` made."""

    written: WrittenRelease
    overridden: int
    """Images that the ledger would have refused."""
    voided: tuple[str, ...]
    """Ids of earlier noisy releases of which this one gives clean pixels away."""
    quarantine: Path | None
    """List of the images kept back."""


def plan_release(cohort: Cohort, request: Request, *, advance: Callable[[int], None] | None = None) -> ReleasePlan:
    """Decide what may leave. `advance` is called with 1 after each image that was looked at.

    Raises UsageError for a request that contradicts itself, DataError where a list names images that are not there,
    RefusedError for clean images without consent.
    """
    with _logging_refusals(request, "consent"):
        _check(request)
    originals = read_originals(cohort)
    looked = list(look(cohort, originals, request.blanks, reviewed=request.reviewed, advance=advance))
    geometries = [_geometry(cohort, original, request.blanks) for original in originals]
    images = [
        _ledger_image(original, found, geometry, request)
        for original, found, geometry in zip(originals, looked, geometries, strict=True)
    ]
    source, release_id = _source(cohort, request, originals, geometries), secrets.token_hex(16)
    release = _ledger_release(request, source, release_id)
    going = [original for original, found in zip(originals, looked, strict=True) if not found.reason]
    allowed = _without_refused(going, images, release, request)
    names = _names(request.parties)
    facts = [
        original.facts(
            matrix=released_matrix(cohort, original.row, request.noise), study=names.study(original.study_uid)
        )
        for original in allowed
    ]
    coded = deidentify(facts, fields=request.fields, keep_rare_sizes=request.keep_rare_sizes)
    leaving = [(original, code) for original, code in zip(allowed, coded.coded, strict=True) if code is not None]
    refused = len(going) - len(allowed)
    notes = [f"{refused:,} images stay here: the ledger refuses them."] if refused else []
    return ReleasePlan(
        cohort=cohort,
        request=request,
        contents=_contents(cohort, leaving, request, names),
        source=source,
        kept_back=[(original, looked[original.row]) for original in originals if looked[original.row].reason],
        notes=[*notes, *coded.notes],
        ledger_release=release,
        ledger_images=[images[original.row] for original, _ in leaving],
    )


def make_release(plan: ReleasePlan, out: Path, *, advance: Callable[[int], None] | None = None) -> MadeRelease:
    """Write the planned release into the new folder `out`; `advance` is called with 1 after each image.

    The ledger counts it from before the first byte. Raises UsageError where `out` exists, CohortError where the
    cohort is altered or nothing may leave, RefusedError where the ledger refuses.
    """
    if out.exists():
        raise UsageError(f"{out} already exists; name a new folder or remove that one")
    quarantine = write_quarantine(plan.cohort, plan.kept_back) if plan.kept_back else None
    if not plan.contents.images:
        reasons = [note.rstrip(".") for note in plan.notes]
        if quarantine:
            reasons.append(f"{len(plan.kept_back):,} wait for review in {quarantine}")
        raise CohortError(f"no image of {plan.cohort.path} may leave: {'; '.join(reasons)}")
    parties = plan.request.parties
    if parties is None:
        written = _write(plan, out, advance)
        return MadeRelease(written=written, overridden=0, voided=(), quarantine=quarantine)
    with parties.keys.ledger() as ledger:
        with _logging_refusals(plan.request, "ledger"):
            found: Reserved = ledger.reserve(plan.ledger_release, plan.ledger_images, override=parties.override)
        try:
            written = _write(plan, out, advance)
        except BaseException:
            # Once the folder has its name it may have been seen: then the reservation stays and counts.
            if not out.exists():
                ledger.abandon(plan.ledger_release.release_id)
            raise
        ledger.commit(plan.ledger_release.release_id, digest=written.record.digest)
    return MadeRelease(written=written, overridden=len(found.objections), voided=found.voided, quarantine=quarantine)


def _logging_refusals(request: Request, reason: str) -> AbstractContextManager[None]:
    """Without keys there is no log."""
    return logging_refusals(request.parties.keys.path, reason) if request.parties else nullcontext()


def _check(request: Request) -> None:
    if request.pairs and not request.consent_clean_images:
        raise RefusedError(
            "--pairs hands over the clean images: no image privacy is left, now or later. "
            "Say --consent-clean-images if that is meant and allowed"
        )
    if request.consent_clean_images and not request.pairs:
        raise UsageError("--consent-clean-images goes with --pairs, without which no clean image leaves")
    if request.parties is not None and request.seed is None:
        from veilray.obfuscation.secret import check_level

        for std in set(request.noise.std_range):
            check_level(std)
        if isinstance(request.noise.std, tuple):
            raise UsageError("noise from a site's secret has one level a release; give one --std")


def _contents(
    cohort: Cohort, leaving: Sequence[tuple[Original, Coded]], request: Request, names: Pseudonyms
) -> Contents:
    columns = tuple(name for name in FIELDS if name in request.fields)
    preprocessing = cohort.record.preprocessing
    # By the pseudonym, which hangs on a secret: by the id, whoever guesses one could test it. Pairs keep the cohort's
    # sets, so that no site trains on what the other tests on; so do sets that a file decided, which hang on no id.
    of_cohort = request.pairs or preprocessing.split_file is not None
    shares = Shares() if of_cohort else parse_shares(preprocessing.shares)
    images = [
        Leaving(
            row=original.row,
            image=names.image(original.image_id),
            patient=names.cohort_patient(original.patient_id),
            values=tuple(getattr(code, name) for name in columns),
            blank=request.blanks.boxes(original),
            split=None if of_cohort else assign(names.cohort_patient(original.patient_id), seed=0, shares=shares),
        )
        for original, code in leaving
    ]
    return Contents(images=in_order(images), columns=columns)


def _names(parties: Parties | None) -> Pseudonyms:
    if parties is None:
        # A key that is forgotten at once: a patient has one name in this release and another in the next.
        return Pseudonyms(secrets.token_bytes(32))
    return Pseudonyms(parties.keys.pseudonym_key(parties.keys.receiver_id(parties.receiver)).reveal())


def _geometry(cohort: Cohort, original: Original, blanks: Blanks) -> str:
    return original.geometry(resampling=cohort.record.preprocessing.resampling, blank=blanks.boxes(original))


def _source(cohort: Cohort, request: Request, originals: Sequence[Original], geometries: Sequence[str]) -> NoiseSource:
    if request.seed is not None:
        return seeded_noise(request.noise, cohort=cohort, seed=request.seed)
    if request.parties is None:
        return entropy_noise(request.noise)
    from veilray.obfuscation.secret import secret_field

    secret, std = request.parties.keys.noise_secret(), request.noise.std_range[0]

    def draw(row: int, shape: tuple[int, int]) -> tuple[FloatImage, float]:
        digest = originals[row].digest
        noise = secret_field(secret=secret.reveal(), digest=digest, geometry=geometries[row], std=std, shape=shape)
        return noise, std

    return NoiseSource(kind="secret", draw=draw)


def _ledger_release(request: Request, source: NoiseSource, release_id: str) -> Release:
    parties = request.parties
    return Release(
        release_id=release_id,
        receivers=(parties.receiver.fingerprint,) if parties else (),
        mode="pairs" if request.pairs else "noisy",
        source=source.kind,
        noise_id=parties.keys.noise_id() if parties and source.kind == "secret" else "",
        clip=request.noise.clip,
        mean=request.noise.single_mean,
    )


def _ledger_image(original: Original, looked: Looked, geometry: str, request: Request) -> Image:
    return Image(
        sop_uid=original.sop_uid,
        name=original.name,
        digest=original.digest,
        likeness=looked.likeness,
        geometry=geometry,
        # The least noisy that may be drawn, so that the ledger errs to the safe side.
        std=request.noise.std_range[0],
        label=original.label,
    )


def _without_refused(
    going: list[Original], images: Sequence[Image], release: Release, request: Request
) -> list[Original]:
    """Those of the images that the ledger lets go, where that was asked for; else all of them."""
    if request.parties is None or not request.leave_out_refused or not going:
        return going
    with request.parties.keys.ledger() as ledger:
        refused = {found.index for found in ledger.examine(release, [images[original.row] for original in going])}
    return [original for index, original in enumerate(going) if index not in refused]


def _write(plan: ReleasePlan, out: Path, advance: Callable[[int], None] | None) -> WrittenRelease:
    request = plan.request
    return write_release(
        plan.cohort,
        out,
        noise=request.noise,
        source=plan.source,
        contents=plan.contents,
        pairs=request.pairs,
        release_id=plan.ledger_release.release_id,
        advance=advance,
    )
