"""Render an audit as one self-contained HTML page for a data-protection officer."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from veilray.files import write_text
from veilray.images.radiograph import FloatImage
from veilray.privacy.results import FEW_PATIENTS, AttackResult, Audit, few_patients_note
from veilray.report import audit_rows, audit_text, audit_values
from veilray.report.audit_figures import drawings
from veilray.report.pages import pages, style_sheet

REPORT_FILE = "audit.html"

_ORDER = ("linkage", "re-identification", "attribute inference", "reconstruction", "membership inference")
_TITLES = {
    "linkage": "Linkage: who holds the originals",
    "re-identification": "Re-identification: who sees two released images",
    "attribute inference": "Attributes: what the image says of the patient",
    "reconstruction": "Reconstruction: how much of the original comes back",
    "membership inference": "Membership: who was a released model trained on",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class AuditPanel:
    """A few images of one variant, to be shown."""

    variant: str
    images: FloatImage
    """(n, H, W), [0, 1] but for noise that is not clamped."""


def render_audit(audit: Audit, out: Path, *, panels: Sequence[AuditPanel] = ()) -> None:
    """Write the page of an audit to `out`, whole or not at all; `panels` only where the images may be shown."""
    write_text(out, audit_page(audit, panels=panels))


def audit_page(audit: Audit, *, panels: Sequence[AuditPanel] = ()) -> str:
    """The page of an audit as one HTML document that refers to nothing outside itself."""
    return pages().get_template("audit.html.j2").render(_context(audit, panels))


def _context(audit: Audit, panels: Sequence[AuditPanel]) -> Mapping[str, Any]:
    return {
        "audit": audit,
        "css": style_sheet(),
        "headline": audit_text.headline(audit),
        "highest_of": audit_text.highest_of(audit),
        "one_draw": audit_text.ONE_DRAW,
        "gate": audit_text.gate_lines(audit),
        "verdicts": audit_text.verdicts(audit),
        "few": few_patients_note(audit.audited.n_patients) if audit.audited.n_patients < FEW_PATIENTS else "",
        "tables": [_table(audit, attack) for attack in _attacks(audit)],
        "drawings": drawings(audit),
        "formal": audit.formal,
        "adjacencies": _adjacencies(audit),
        "skipped": _not_tested(audit),
        "panels": [(panel.variant, [_data_uri(image) for image in panel.images]) for panel in panels],
    }


def _attacks(audit: Audit) -> list[str]:
    there = dict.fromkeys(one.attack for one in audit.results)
    return [*(name for name in _ORDER if name in there), *(name for name in there if name not in _ORDER)]


def _table(audit: Audit, attack: str) -> dict[str, Any]:
    """A table of one attack: a row for each metric and attacker, a column for each kind of image."""
    results = audit_rows.shown(audit, attack)
    variants = [name for name in audit.audited.variants if any(one.variant == name for one in results)]
    variants += [name for name in dict.fromkeys(one.variant for one in results) if name not in variants]
    return {
        "title": _TITLES.get(attack, attack),
        "variants": variants,
        "rows": audit_rows.rows(results),
        "together": audit_text.against_theory(audit) if attack == "linkage" else "",
        "notes": _notes(results),
    }


def _notes(results: Sequence[AttackResult]) -> list[str]:
    """What the records say of themselves, each once, beside what it is said of."""
    said: dict[str, list[str]] = {}
    for one in results:
        few = few_patients_note(one.n_patients)
        beside = f" ({few})" if few in one.notes else ""
        for note in one.notes:
            if note != few:  # stands beside each figure and each note
                said.setdefault(f"{note}{beside}", []).append(f"{audit_values.metric_name(one.metric)} ({one.variant})")
    return [
        f"{', '.join(dict.fromkeys(whose)) if len(whose) < 4 else 'several'}: {note}." for note, whose in said.items()
    ]


def _not_tested(audit: Audit) -> list[tuple[str, str, str]]:
    """Attack, images and reason of what was not tested; each reason once for all the images that it holds for."""
    where: dict[tuple[str, str], list[str]] = {}
    for one in audit.skipped:
        where.setdefault((one.attack, one.reason), []).append(one.variant)
    return [(attack, ", ".join(filter(None, names)), reason) for (attack, reason), names in where.items()]


def _adjacencies(audit: Audit) -> list[dict[str, Any]]:
    """A row for each adjacency: its distance, and epsilon and mu at each level."""
    if audit.formal is None or not audit.formal.levels:
        return []
    return [
        {
            "name": line.adjacency,
            "sensitivity": f"{line.sensitivity:.4g}",
            "cells": [
                (audit_values.epsilon_text(level.lines[place].epsilon), f"{level.lines[place].mu:.3g}")
                for level in audit.formal.levels
            ],
        }
        for place, line in enumerate(audit.formal.levels[0].lines)
    ]


def _data_uri(image: FloatImage) -> str:
    levels = np.rint(np.clip(image, 0.0, 1.0) * 255.0).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(levels).save(stream, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")
