"""What `audit` puts together before it attacks: originals, releases, levels of noise, a denoiser, the ledger."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from veilray.cli.progress import Reporter, progress
from veilray.errors import LpipsUnavailable, UsageError
from veilray.privacy.accounting import composed_std
from veilray.privacy.audit import AuditPlan
from veilray.privacy.catalogue import ATTRIBUTES, LIRA, MEMBERSHIP, RECONSTRUCTION, REIDENTIFICATION, TRAINED
from veilray.privacy.data import AuditData, NamedAttack, Variant
from veilray.privacy.extent import Extent
from veilray.privacy.material import (
    Originals,
    audited_release,
    open_originals,
    release_name,
    release_variant,
    releases_together,
    taken_for_granted,
)
from veilray.privacy.results import LEDGER, Composition, Skipped
from veilray.privacy.variants import baseline_variants, clean_variant, denoised_variant, simulated_variant

if TYPE_CHECKING:
    from veilray.cohort.cohort import Cohort
    from veilray.cohort.release import Release
    from veilray.inference.denoiser import Denoiser
    from veilray.report.audit import AuditPanel

PRIVATE = "private"
"""Folder of an audit for denoised images of patients, while the audit runs; it goes when the audit is done."""

_NOISE_SEED = 20_017
_SHOWN = 2
_SAY_AGAIN = 15.0


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """An audit, ready to run."""

    plan: AuditPlan
    private: Path
    warnings: tuple[str, ...] = ()
    """What whoever runs it should know before it begins, each a sentence without a full stop."""

    def panels(self) -> list[AuditPanel]:
        """A few images of every variant, for a report that may show them."""
        from veilray.report.audit import AuditPanel

        shared = set(range(len(self.plan.data)))
        for variant in self.plan.variants:
            shared &= set(variant.available(self.plan.data).tolist())
        rows = np.array(sorted(shared)[:_SHOWN], dtype=np.int64)
        if not len(rows):
            return []
        return [AuditPanel(variant=one.name, images=one.draw(rows, 0)) for one in self.plan.variants]

    def forget(self) -> None:
        """Remove the denoised images."""
        shutil.rmtree(self.private, ignore_errors=True)


@dataclass(frozen=True, kw_only=True)
class AuditRequest:
    """What whoever runs an audit asks for."""

    originals: Path
    releases: Sequence[Path] = ()
    levels: Sequence[float] = ()
    """Standard deviations of noise that is made for the audit alone, with `mean`."""
    mean: float
    denoiser: str | None = None
    model: Path | None = None
    """The run whose training set is guessed at; the denoiser's where none is named."""
    labels: Path | None = None
    backbone: Path | None = None
    keys: Path | None = None
    """Site One's keys, whose ledger says what left before."""
    passphrase_file: Path | None = None
    images: int | None = None
    """So many at most; all where it is None."""
    extent: Extent
    out: Path

    @property
    def private(self) -> Path:
        """The folder for denoised images."""
        return self.out / PRIVATE


def plan_audit(asked: AuditRequest) -> Prepared:
    """Open and check everything; UsageError where there is nothing to attack, DataError where it does not fit."""
    from veilray.cohort.cohort import Cohort
    from veilray.cohort.release import Release

    if not asked.releases and not asked.levels:
        raise UsageError("nothing to attack: name a release, or levels of noise to try with --std 0.1,0.2,0.3")
    cohort = Cohort.open(asked.originals)
    _check_out(asked.out, [asked.originals, *asked.releases])
    opened = [Release.open(path) for path in asked.releases]
    for folder in (cohort, *opened):
        folder.verify()
    found = open_originals(cohort, labels=asked.labels, most=asked.images)
    of_releases = _of_releases(opened, cohort, found)
    simulated = [simulated_variant(found.data, mean=asked.mean, std=level, seed=_NOISE_SEED) for level in asked.levels]
    noisy = [*of_releases, *simulated]
    attacked = [*noisy, *_restored(noisy, found.data, asked)]
    unrestored: list[Skipped] = []
    if asked.extent.for_scale:
        attacked, unrestored = _for_scale(noisy, attacked, found.data, folder=asked.private)
    membership, unasked = _membership(asked)
    plan = AuditPlan(
        data=found.data,
        variants=[clean_variant(found.data), *attacked],
        attacks=[*_attacks(asked.extent, asked.backbone), *membership],
        extent=asked.extent,
        grey_step=found.grey_step,
        releases=tuple(
            audited_release(release, variant, found.data) for release, variant in zip(opened, of_releases, strict=True)
        ),
        restorer_steps=_steps(attacked),
        holds_clean=any(release.pairs for release in opened),
        subtractable=any(release.record.subtractable for release in opened),
        left_out=found.left_out,
        labels_known=found.labels_known,
        composition=_composition(cohort, found, opened, of_releases, asked),
        not_possible=(*_beforehand(asked), *unrestored, *unasked),
    )
    warnings = (*found.labels_known, *found.labels_not_understood)
    return Prepared(plan=plan, private=asked.private, warnings=warnings)


class Watching:
    """Shows an audit's progress: a bar over attacks and variants, and a line for what takes long."""

    def __init__(self, bar: Reporter) -> None:
        self._bar = bar
        self._what = ""
        self._said = time.monotonic()

    @classmethod
    @contextmanager
    def over(cls, plan: AuditPlan) -> Iterator[Watching]:
        """Watch the run of a plan."""
        with progress(len(plan.steps), "auditing", "attacks on images") as bar:
            yield cls(bar)

    def begins(self, attack: str, variant: str, *, reused: bool) -> None:
        """Say which attack begins."""
        self._what = f"{attack}, {variant}"
        self._said = time.monotonic()
        self._bar.say(f"{self._what}{': from an earlier run' if reused else ''}")

    def at(self, what: str) -> None:
        """Say what the attack is at, if nothing was said for a while."""
        if time.monotonic() - self._said >= _SAY_AGAIN:
            self._said = time.monotonic()
            self._bar.say(f"{self._what}: {what}")

    def ends(self) -> None:
        """Count it."""
        self._bar.advance(1)


def _check_out(out: Path, inputs: Sequence[Path]) -> None:
    for folder in inputs:
        if out.resolve().is_relative_to(folder.resolve()):
            raise UsageError(f"--out {out} lies inside {folder}; name a folder outside it")
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is a file; name a folder")


def _of_releases(releases: Sequence[Release], cohort: Cohort, originals: Originals) -> list[Variant]:
    names = [release_name(release) for release in releases]
    if len({release.digest for release in releases}) < len(releases):
        raise UsageError("a release is named twice; name each once")
    numbered = [
        name if names.count(name) == 1 else f"{name}, {release.record.release_id[:6]}"
        for name, release in zip(names, releases, strict=True)
    ]
    return [
        release_variant(release, cohort, originals, name=name) for name, release in zip(numbered, releases, strict=True)
    ]


def _restored(noisy: Sequence[Variant], data: AuditData, asked: AuditRequest) -> list[Variant]:
    if asked.denoiser is None:
        return []
    from veilray.inference.denoiser import Denoiser

    network: Denoiser = Denoiser.load(asked.denoiser)
    if network.origin is None:
        raise UsageError(f"--denoiser {asked.denoiser} has no file of weights; give a run folder or an exported model")
    digest = f"{network.origin.weights_sha256} {network.origin.head}"
    return [
        denoised_variant(one, network, folder=asked.private, data=data, digest=digest, most=asked.extent.denoised)
        for one in noisy
    ]


def _for_scale(
    noisy: Sequence[Variant], attacked: Sequence[Variant], data: AuditData, *, folder: Path
) -> tuple[list[Variant], list[Skipped]]:
    """What is attacked anyway, other obfuscations, and each of these and of the noisy images restored by its network.

    Fidelity counts on those patients alone whom none of the networks was trained on, of every variant.
    """
    from veilray.errors import DataError
    from veilray.privacy.restorers import restored_variant

    named = {one.name for one in noisy}
    others = [one for one in baseline_variants(data, seed=_NOISE_SEED) if one.name not in named]
    found, skipped = [replace(one, judged=_judged(data)) for one in (*attacked, *others)], []
    for one in (*noisy, *others):
        try:
            found.append(restored_variant(one, data=data, folder=folder))
        except DataError as error:
            reason = f"no network was trained for it: {str(error).rstrip('.')}"
            skipped.append(Skipped(attack=RECONSTRUCTION, variant=one.name, reason=reason))
    return found, skipped


def _judged(data: AuditData) -> tuple[int, ...] | None:
    """The rows whose fidelity counts where networks are trained on the others; None for too few patients."""
    from veilray.errors import DataError
    from veilray.privacy.restorers import dealt

    try:
        return tuple(dealt(data)[1].tolist())
    except DataError:
        return None


def _steps(variants: Sequence[Variant]) -> int:
    """Steps of the networks that are trained for the variants; 0 where none is."""
    from veilray.privacy.restorers import STEPS

    return STEPS if any(one.restorer == TRAINED for one in variants) else 0


def _attacks(extent: Extent, backbone: Path | None) -> list[NamedAttack]:
    """The attacks, through the AlexNet that was named, or else the one in the cache, where there is one."""
    from veilray.metrics.lpips import backbone_file, load_lpips
    from veilray.privacy.attacks import attacks

    found, perceptual = backbone, None
    try:
        found = backbone_file(backbone)
        perceptual = load_lpips(found)
    except LpipsUnavailable:
        if backbone is not None:
            raise
    return attacks(extent=extent, backbone=found, perceptual=perceptual)


def _composition(
    cohort: Cohort,
    originals: Originals,
    releases: Sequence[Release],
    variants: Sequence[Variant],
    asked: AuditRequest,
) -> Composition | None:
    """What left of the images before, by the ledger, with what is audited; without it, by the releases at hand."""
    from veilray.privacy.formal import composition_of

    if asked.keys is None:
        if len(releases) < 2:
            return None
        together = releases_together(releases, variants, originals.data)
        return composition_of(together, source="the releases named here", notes=taken_for_granted(releases))
    left, known = _left(cohort, originals, asked.keys, asked.passphrase_file)
    new = [pair for pair in zip(releases, variants, strict=True) if pair[0].record.release_id not in known]
    if not (new or asked.levels):
        return composition_of(left, source=LEDGER)
    # What the ledger does not know counts as independent of what it does: it cannot tell that one secret made both.
    unknown = [one for one, _ in new]
    added = releases_together(unknown, [one for _, one in new], originals.data)
    # Levels of --std are tried instead of each other: the least noisy one is what could leave.
    tried = [[min(asked.levels)]] if asked.levels else []
    together = [composed_std([[one], [other], *tried]) for one, other in zip(left, added, strict=True)]
    source = f"{LEDGER}, with what is audited here and it does not know"
    return composition_of(together, source=source, notes=taken_for_granted(unknown))


def _left(
    cohort: Cohort, originals: Originals, keys: Path, passphrase_file: Path | None
) -> tuple[list[float], set[str]]:
    """The composed std of each audited image by the ledger, infinity where nothing left; the releases it knows."""
    from veilray.cli.site_keys import open_keys
    from veilray.exchange.release.history import left_of

    with open_keys(keys, passphrase_file).ledger() as ledger:
        stds = [exposure.std for _, exposure in left_of(cohort, originals.rows.tolist(), ledger=ledger)]
        return stds, {line.release.release_id for line in ledger.releases()}


def _beforehand(asked: AuditRequest) -> list[Skipped]:
    """What this audit does not even try."""
    found = []
    if asked.denoiser is None and not asked.extent.for_scale:
        reason = "no denoiser was given (--denoiser): what a trained network makes of the images was not attacked"
        found.append(Skipped(attack=RECONSTRUCTION, reason=reason))
    elif not asked.extent.learns_denoised:
        reason = "under --quick denoised images are only linked and scored"
        found += [Skipped(attack=name, reason=reason) for name in (REIDENTIFICATION, ATTRIBUTES)]
    if not asked.extent.for_scale:
        reason = (
            "blur, down-sampling, pixelation and stronger noise are attacked for scale, and a network is trained to "
            "undo each, under --full"
        )
        found.append(Skipped(attack="other obfuscations", reason=reason))
    if asked.keys is None:
        reason = "no ledger was given (--keys): what left of these images in other releases is not in these figures"
        found.append(Skipped(attack="composition", reason=reason))
    return found


def _membership(asked: AuditRequest) -> tuple[list[NamedAttack], list[Skipped]]:
    """The attack on the model that is to leave, the denoiser where none is named; or why there is none."""
    from veilray.errors import DataError
    from veilray.privacy.attacks import membership_attack

    model = asked.model or (Path(asked.denoiser) if asked.denoiser is not None else None)
    if model is None:
        reason = "whether a patient was in the training set of a released model is attacked with --model RUN"
        return [], [Skipped(attack=MEMBERSHIP, reason=reason)]
    try:
        attack = membership_attack(model, asked.originals, folder=asked.private, releases=asked.releases)
    except (DataError, UsageError) as error:
        if asked.model is not None:
            raise
        told = str(error).rstrip(".")
        reason = f"the denoiser is no run on this cohort, or cannot be asked ({told}); name a run with --model"
        return [], [Skipped(attack=MEMBERSHIP, reason=reason)]
    reason = f"the {LIRA} trains 16 networks or more, under --full"
    return [attack], [] if asked.extent.shadows else [Skipped(attack=MEMBERSHIP, reason=reason)]
