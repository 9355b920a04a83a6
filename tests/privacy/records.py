"""Records of an audit, as tests of the gate and of the report need them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from veilray.privacy.formal import formal_side
from veilray.privacy.results import AttackResult, Audit, Audited, AuditedRelease, Skipped


def result(**given: Any) -> AttackResult:
    """A figure of 40 patients; anything may be said otherwise."""
    usual = {
        "attack": "re-identification",
        "attacker": "verification network",
        "variant": "noise 0.2",
        "metric": "auc",
        "value": 0.7,
        "low": 0.6,
        "high": 0.8,
        "chance": 0.5,
        "n_images": 80,
        "n_patients": 40,
        "seeds": (1, 2, 3),
    }
    return AttackResult(**(usual | given))


def small_audit(outcomes: Sequence[AttackResult | Skipped], **given: Any) -> Audit:
    """An audit of originals, one level of noise and its denoised images."""
    audited = {
        "originals_digest": "0" * 64,
        "releases": (AuditedRelease(digest="1" * 64, variant="noise 0.2", noise="fresh", audited=80, total=80),),
        "n_images": 80,
        "n_patients": 40,
        "n_with_follow_ups": 40,
        "height": 64,
        "width": 64,
        "variants": {"original": "clean", "noise 0.2": "noisy", "noise 0.2, denoised": "denoised"},
    } | given.pop("audited", {})
    usual = {
        "veilray": "0.1.0",
        "code": "3" * 64,
        "effort": "quick",
        "seeds": (1, 2, 3),
        "started": "2026-01-01T08:00:00+00:00",
        "seconds": 12.5,
        "device": "CPU",
        "audited": Audited(**audited),
        "formal": formal_side({"noise 0.2": 0.2}, height=64, width=64, grey_step=1 / 255),
        "outcomes": tuple(outcomes),
    }
    return Audit(**(usual | given))
