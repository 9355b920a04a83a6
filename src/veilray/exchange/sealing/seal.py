"""Sealing: a release, a model, denoised images or means of an evaluation become one signed and encrypted file."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from veilray.errors import DataError, RefusedError, UsageError
from veilray.exchange.ledger.records import DENOISED_SEALED, EVALUATION_SEALED, Evaluated, Model, Override
from veilray.exchange.sealing.bundle import BundleSource, Faithful, measure, streams_first
from veilray.exchange.sealing.manifest import MAX_PARTS, MAX_RECEIVERS, Manifest, Part, encode_manifest
from veilray.exchange.sealing.sequences import Sequences, log, logging_refusals
from veilray.exchange.sealing.sources import Source, sealable
from veilray.exchange.watching import ignore
from veilray.files import replacing

if TYPE_CHECKING:
    from veilray.exchange.keys.folder import KeyFolder, PublicCard

ENDING = ".veil"


@dataclass(frozen=True, kw_only=True)
class SealedBundle:
    """What `seal` made."""

    path: Path
    manifest: Manifest
    notes: tuple[str, ...]
    """What whoever sends it must know, such as that clean images are in it."""


def seal(
    source: Path,
    out: Path,
    *,
    keys: KeyFolder,
    receivers: Sequence[PublicCard],
    override: Override | None = None,
    advance: Callable[[int], None] | None = None,
) -> SealedBundle:
    """Seal a release, a run (its model), denoised images or an evaluation (its means) into the new file `out`.

    Signed by the key folder's Ed25519 key, encrypted by age to every receiver; anyone else, the sender included, cannot
    open it. Memory does not grow with the size. `advance` is called with the bytes that were encrypted. At Site One the
    ledger is asked: it must know a release, or the one that images were denoised from, as made for these receivers,
    unless there is an `override`, which it keeps. Site Two seals no releases.
    A model that leaves is written into it, under the bundle's id; an evaluation's leaving, under its release's.

    Nothing is left behind when it fails. Raises RefusedError for a folder that must not leave, DataError where a file
    is damaged or changes meanwhile, UsageError where `out` exists or nobody is to receive it.
    """
    import pyrage

    fingerprints = _fingerprints(receivers)
    if out.exists():
        raise UsageError(f"{out} already exists; name a new file or remove that one")
    with ExitStack() as stack:
        found = _admit(stack, source, out, keys)
        notes = [*found.notes, *_ask_ledger(found, keys, receivers, override)]
        manifest = _manifest(found, keys, fingerprints)
        if found.evaluated is not None and keys.role == "site-one":
            notes += _note_evaluation(found.evaluated, manifest, keys, receivers, override)
        if found.model is not None and keys.role == "site-one":
            stack.enter_context(_remembered(found.model, manifest, out, keys))
        signed = encode_manifest(manifest)
        tar = BundleSource(
            found.folder,
            manifest.parts,
            signed=signed,
            signature=keys.signing_key().sign(signed),
            advance=advance or ignore,
        )
        recipients = [pyrage.x25519.Recipient.from_str(card.age_recipient) for card in receivers]
        part = stack.enter_context(replacing(out))
        with part.open("wb") as file:
            content, target = Faithful(tar), Faithful(file)
            with streams_first(content, target):
                pyrage.encrypt_io(content, target, recipients)
    log(
        keys.path,
        "sealed",
        bundle_id=manifest.bundle_id,
        kind=manifest.kind,
        receivers=list(fingerprints),
        sequence=manifest.sequence,
        parts=len(manifest.parts),
        bytes=manifest.n_bytes,
    )
    return SealedBundle(path=out, manifest=manifest, notes=tuple(notes))


def _ask_ledger(
    found: Source, keys: KeyFolder, receivers: Sequence[PublicCard], override: Override | None
) -> list[str]:
    """RefusedError where Site One's ledger objects to the leaving of a release or of images denoised from one.

    Gives what was overridden, in sentences. Site Two has no ledger.
    """
    asked = {(found.release.release_id, found.release.digest): "sealed"} if found.release is not None else {}
    known = {card.name: keys.fingerprints_of(card) for card in receivers}
    of = [(batch.release, len(batch.files)) for batch in found.denoised if batch.release is not None]
    counts: Counter[str] = Counter()  # whatever digests they state
    for release, count in of:
        counts[release.release_id] += count
    for release, _ in of:
        event = f"{DENOISED_SEALED}: {counts[release.release_id]} images, for {', '.join(sorted(known))}"
        asked[release.release_id, release.digest or ""] = event
    if keys.role != "site-one" or not asked:
        return []
    with logging_refusals(keys.path, "ledger"), keys.ledger() as ledger:
        objections = [
            ledger.admit(
                release_id,
                digest=digest,
                receivers=known,
                override=override,
                event=event,
                images=counts[release_id],
                subtractable=found.release is not None and found.release.subtractable,
            )
            for (release_id, digest), event in asked.items()
        ]
    return [note for objection in objections for note in _overridden(objection)]


def _note_evaluation(
    evaluated: Evaluated,
    manifest: Manifest,
    keys: KeyFolder,
    receivers: Sequence[PublicCard],
    override: Override | None,
) -> list[str]:
    """RefusedError where the ledger objects to an evaluation's leaving; what whoever sends it must know."""
    known = {card.name: keys.fingerprints_of(card) for card in receivers}
    event, release_id = evaluated.event(known), evaluated.release_id
    with logging_refusals(keys.path, "ledger"), keys.ledger() as ledger:
        if release_id is None:
            ledger.note(manifest.bundle_id, event)
            return []
        overridden = ledger.admit(
            release_id, digest=evaluated.release_digest, receivers=known, override=override, event=event
        )
        left = sum(one.release_id == release_id and one.what.startswith(EVALUATION_SEALED) for one in ledger.events())
    return [*_overridden(overridden), f"Evaluations of this release that left: {left}."]


def _overridden(objection: str) -> list[str]:
    return [f"Overridden, with name and reason kept: {objection}."] if objection else []


@contextmanager
def _remembered(model: Model, manifest: Manifest, out: Path, keys: KeyFolder) -> Iterator[None]:
    """Write a model that leaves Site One into its ledger, from before the first byte of the bundle `out`."""
    with keys.ledger() as ledger:
        ledger.reserve_model(manifest.bundle_id, model, receivers=manifest.receivers)
        try:
            yield
        except BaseException:
            # Once the bundle has its name it may have been sent: then the reservation stays.
            if not out.exists():
                ledger.abandon(manifest.bundle_id)
            raise
        ledger.commit(manifest.bundle_id)


def _admit(stack: ExitStack, source: Path, out: Path, keys: KeyFolder) -> Source:
    with logging_refusals(keys.path, "source"):
        found = stack.enter_context(sealable(source, near=out.parent))
    if found.release is not None and keys.role != "site-one":
        with logging_refusals(keys.path, "role"):
            raise RefusedError(
                f"{source} is a release, and the keys are those of a Site Two, which has no ledger: seal it with those "
                "of Site One"
            )
    return found


def _fingerprints(receivers: Sequence[PublicCard]) -> tuple[str, ...]:
    fingerprints = tuple(dict.fromkeys(card.fingerprint for card in receivers))
    if not 1 <= len(fingerprints) <= MAX_RECEIVERS:
        raise UsageError(f"a bundle has 1 to {MAX_RECEIVERS} receivers, not {len(fingerprints)}")
    return fingerprints


def _manifest(found: Source, keys: KeyFolder, receivers: tuple[str, ...]) -> Manifest:
    return Manifest(
        bundle_id=secrets.token_hex(16),
        sender=keys.card.fingerprint,
        receivers=receivers,
        sequence=Sequences(keys.path).next_for(receivers),
        sealed_at=datetime.now(UTC).replace(microsecond=0),
        kind=found.kind,
        parts=_measure(found),
    )


def _measure(found: Source) -> tuple[Part, ...]:
    if len(found.names) > MAX_PARTS:
        raise DataError(
            f"{found.folder} holds {len(found.names):,} files; a bundle takes {MAX_PARTS:,}: "
            "make several smaller releases, and denoise each into a folder of its own"
        )
    return tuple(measure(found.folder, name) for name in found.names)
