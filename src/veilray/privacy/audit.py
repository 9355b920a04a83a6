"""Run an audit: every attack on every variant, each result kept as soon as it is there, and what could not be run."""

from __future__ import annotations

import functools
import hashlib
import platform
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict, ValidationError

import veilray
from veilray.errors import DataError, UsageError
from veilray.files import read_json, sha256_file, write_json
from veilray.privacy.data import AuditData, NamedAttack, Variant
from veilray.privacy.extent import Extent
from veilray.privacy.formal import formal_side
from veilray.privacy.results import (
    AttackResult,
    Audit,
    Audited,
    AuditedRelease,
    Composition,
    Outcome,
    Skipped,
    write_audit,
)

APART = frozenset({"cli", "clinic", "evaluation", "exchange", "report", "__main__.py"})
"""Parts of Veilray that no attack depends on: results stay good when they change."""

ATTACKS = "attacks"
"""Folder of an audit with a file for each attack on each variant; what is there need not be run again."""


class Watcher(Protocol):
    """Is told what an audit is at."""

    def begins(self, attack: str, variant: str, *, reused: bool) -> None:
        """An attack on a variant begins, or was found done."""

    def at(self, what: str) -> None:
        """What the attack is at, in a few words."""

    def ends(self) -> None:
        """The attack on that variant is done."""


@dataclass(frozen=True, kw_only=True)
class AuditPlan:
    """All that an audit is to do."""

    data: AuditData
    variants: Sequence[Variant]
    attacks: Sequence[NamedAttack]
    extent: Extent
    grey_step: float
    releases: tuple[AuditedRelease, ...] = ()
    holds_clean: bool = False
    subtractable: bool = False
    left_out: tuple[str, ...] = ()
    labels_known: tuple[str, ...] = ()
    restorer_steps: int = 0
    composition: Composition | None = None
    not_possible: tuple[Skipped, ...] = ()
    """What is known beforehand not to be possible."""
    seeds: tuple[int, ...] | None = None
    """In place of the usual ones."""
    device: str = field(default_factory=lambda: f"CPU, {platform.machine()}")

    @property
    def steps(self) -> list[tuple[NamedAttack, Variant]]:
        """Every attack with every variant that it attacks, in order."""
        # Variant by variant, so that what attacks share of one is computed once.
        return [
            (attack, variant) for variant in self.variants for attack in self.attacks if variant.kind in attack.kinds
        ]

    @property
    def drawn(self) -> tuple[int, ...]:
        """The seeds."""
        return self.seeds or self.extent.seeds


def run_audit(plan: AuditPlan, out: Path, watcher: Watcher) -> Audit:
    """Run what is not done yet, and write `audit.json` into `out`; the same plan and code find what is there.

    An attack that the data cannot bear is listed as not tested; any other error ends the audit, which can be run again.
    """
    began, started = time.monotonic(), datetime.now(UTC).isoformat(timespec="seconds")
    outcomes: list[AttackResult | Skipped] = []
    for attack, variant in plan.steps:
        outcomes += _outcomes(plan, attack, variant, out, watcher)
    levels = {one.name: one.std for one in plan.variants if one.kind == "noisy"}
    height, width = plan.data.size
    formal = (
        formal_side(
            levels,
            height=height,
            width=width,
            grey_step=plan.grey_step,
            most_images=max(Counter(plan.data.patient_ids).values()),
            composition=plan.composition,
        )
        if levels
        else None
    )
    audit = Audit(
        veilray=veilray.__version__,
        code=code_digest(),
        effort=plan.extent.effort,
        seeds=plan.drawn,
        started=started,
        seconds=round(time.monotonic() - began, 1),
        device=plan.device,
        audited=_audited(plan),
        formal=formal,
        composition=plan.composition,
        outcomes=(*outcomes, *plan.not_possible),
    )
    write_audit(out, audit)
    return audit


class _Kept(BaseModel):
    """A file of finished results."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    digest: str
    seconds: float
    outcomes: tuple[Outcome, ...]


def _outcomes(
    plan: AuditPlan, attack: NamedAttack, variant: Variant, out: Path, watcher: Watcher
) -> tuple[AttackResult | Skipped, ...]:
    """The results of an attack on one variant: those of an earlier run of the same, or new ones."""
    digest = _digest(plan, attack, variant)
    path = out / ATTACKS / f"{attack.name.replace(' ', '-')}-{digest[:16]}.json"
    kept = _read(path, digest)
    watcher.begins(attack.name, variant.name, reused=kept is not None)
    if kept is None:
        began = time.monotonic()
        found = _run(plan, attack, variant, watcher)
        kept = _Kept(digest=digest, seconds=round(time.monotonic() - began, 1), outcomes=tuple(found))
        write_json(path, kept.model_dump(mode="json"))
    watcher.ends()
    return kept.outcomes


def _run(plan: AuditPlan, attack: NamedAttack, variant: Variant, watcher: Watcher) -> list[AttackResult | Skipped]:
    try:
        if variant.prepare is not None:
            variant.prepare(watcher.at)
        return attack.run(plan.data, variant, extent=plan.extent, seeds=plan.drawn, progress=watcher.at)
    except (DataError, UsageError) as error:
        return [Skipped(attack=attack.name, variant=variant.name, reason=str(error).rstrip("."))]


def _read(path: Path, digest: str) -> _Kept | None:
    with suppress(DataError, ValidationError):
        kept = _Kept.model_validate(read_json(path))
        if kept.digest == digest:
            return kept
    return None


def _digest(plan: AuditPlan, attack: NamedAttack, variant: Variant) -> str:
    parts: list[Any] = [plan.data.digest, variant.digest, variant.name, variant.judged, attack.name, attack.inputs]
    parts += [plan.extent, plan.drawn, code_digest()]
    return hashlib.sha256(repr(parts).encode()).hexdigest()


@functools.cache
def code_digest() -> str:
    """SHA-256 over the code that attacks depend on, all of Veilray but `APART`; results of other code are run again."""
    root = Path(veilray.__file__).parent
    files = {file.relative_to(root): file for file in sorted(root.rglob("*.py"))}
    digest = hashlib.sha256()
    for name, file in files.items():
        if name.parts[0] not in APART:
            digest.update(f"{name.as_posix()} {sha256_file(file)}\n".encode())
    return digest.hexdigest()


def _audited(plan: AuditPlan) -> Audited:
    patients = plan.data.patient_ids
    several = sum(count > 1 for count in Counter(patients).values())
    return Audited(
        originals_digest=plan.data.digest,
        releases=plan.releases,
        n_images=len(plan.data),
        n_patients=plan.data.n_patients,
        n_with_follow_ups=several,
        height=plan.data.size[0],
        width=plan.data.size[1],
        variants={one.name: one.kind for one in plan.variants},
        restorer_steps=plan.restorer_steps,
        restored={one.name: one.source for one in plan.variants if one.source},
        holds_clean=plan.holds_clean,
        subtractable=plan.subtractable,
        left_out=plan.left_out,
        labels_known=plan.labels_known,
    )
