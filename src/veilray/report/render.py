"""Render a comparison as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from veilray.errors import UsageError
from veilray.evaluation.comparison import Arm, Comparison, Level, Pair
from veilray.evaluation.panels import Panel
from veilray.evaluation.results import METRICS
from veilray.files import write_text
from veilray.report import figures, text
from veilray.report.limits import limits
from veilray.report.pages import pages, style_sheet
from veilray.report.panels import PanelView, SmallView, colour_bar, difference_limit, small_view, view
from veilray.report.protocol import (
    configurations,
    data_sets,
    environment,
    patients_unknown,
    protocol,
    run_names,
    shared_patients,
)
from veilray.report.repeating import commands

ROLES = ("median", "best", "worst")
"""Of the panels that are shown whole; the others are small."""


def render(comparison: Comparison, panels: Sequence[Panel], out: Path, *, notes: Sequence[str] = ()) -> None:
    """Write the report of a comparison to `out`, whole or not at all.

    `panels` may be empty, where the images are not at hand; the report then says so. `notes` on the data, in plain
    text, are shown with them. Raises UsageError for a panel of
    an unknown noise level or with an arm missing.
    """
    write_text(out, to_html(comparison, panels, notes=notes))


def to_html(comparison: Comparison, panels: Sequence[Panel], *, notes: Sequence[str] = ()) -> str:
    """The report of a comparison as one HTML document that refers to nothing outside itself."""
    _check(comparison, panels)
    return pages().get_template("report.html.j2").render({**_context(comparison, panels), "notes": notes})


def _context(comparison: Comparison, panels: Sequence[Panel]) -> Mapping[str, Any]:
    arms = [arm for level in comparison.levels for arm in level.arms]
    shown = [metric for metric in METRICS if _is_shown(metric, arms)]
    styles = figures.strokes(comparison)
    return {
        "comparison": comparison,
        "css": style_sheet(),
        "title": text.title(comparison),
        "abstract": text.abstract(comparison),
        "metrics": shown,
        "rows": {level.label: [_scores_row(arm, shown) for arm in level.arms] for level in comparison.levels},
        "timed": any(arm.kind == "classical" for arm in arms),
        "pairs": [(level, _pairs_by_arms(level)) for level in comparison.levels if level.pairs],
        "curves": {
            level.label: figures.learning_curves(level, styles)
            for level in comparison.levels
            if any(run.curve for arm in level.models for run in arm.runs)
        },
        "distributions": {level.label: _distributions(level, styles) for level in comparison.levels},
        "panels": {level.label: _panels(level, panels) for level in comparison.levels},
        "lowest": {level.label: _lowest(level, panels) for level in comparison.levels},
        "limit": difference_limit(panels),
        "colour_bar": colour_bar(),
        "styles": styles,
        "protocol": protocol(comparison),
        "data_sets": data_sets(comparison),
        "shared_patients": shared_patients(comparison),
        "patients_unknown": patients_unknown(comparison),
        "environment": environment(comparison),
        "commands": commands(comparison),
        "configurations": configurations(comparison),
        "run_names": run_names(comparison.runs),
        "limits": limits(comparison),
        "started": min((str(run.environment.get("started", ""))[:10] for run in comparison.runs), default=""),
    }


def _is_shown(metric: str, arms: Sequence[Arm]) -> bool:
    # PSNR of the raw output belongs to the paper's protocol alone; what else is missing is said to be missing.
    return metric != "psnr_unclamped" or any(arm.metrics.get(metric) is not None for arm in arms)


def _scores_row(arm: Arm, metrics: Sequence[str]) -> dict[str, Any]:
    cells = []
    for metric in metrics:
        interval = arm.metrics.get(metric)
        cells.append(
            None
            if interval is None
            else {
                "mean": text.score(metric, interval.mean),
                "ends": text.ends(metric, interval),
                "best": metric in arm.best,
            }
        )
    return {
        "arm": arm,
        "cells": cells,
        "core_seconds": text.core_seconds(arm.core_seconds),
        "seconds": text.seconds(arm.training_seconds),
    }


def _pairs_by_arms(level: Level) -> list[tuple[str, list[Pair]]]:
    grouped: dict[str, list[Pair]] = {}
    for pair in level.pairs:
        grouped.setdefault(text.difference(pair), []).append(pair)
    return list(grouped.items())


def _distributions(level: Level, styles: dict[str, figures.Stroke]) -> list[Markup]:
    drawn = [figures.scores_by_image(level, styles)]
    return [*drawn, figures.paired_differences(level)] if level.pairs else drawn


def _panels(level: Level, panels: Sequence[Panel]) -> list[PanelView]:
    labels = [arm.label for arm in level.models]
    mine = [panel for role in ROLES for panel in panels if panel.level == level.label and panel.role == role]
    return [view(panel, labels, limit=difference_limit(panels)) for panel in mine]


def _lowest(level: Level, panels: Sequence[Panel]) -> list[SmallView]:
    """The images with the lowest PSNR, small, the worst first."""
    labels = [arm.label for arm in level.models]
    mine = [panel for role in ("worst", "low") for panel in panels if (panel.level, panel.role) == (level.label, role)]
    return [small_view(panel, labels) for panel in mine]


def _check(comparison: Comparison, panels: Sequence[Panel]) -> None:
    labels = {level.label: [arm.label for arm in level.models] for level in comparison.levels}
    for panel in panels:
        if panel.level not in labels:
            raise UsageError(f"panel {panel.image_id}: no noise level {panel.level}; there are {', '.join(labels)}")
        missing = [label for label in labels[panel.level] if label not in panel.outputs]
        if missing:
            raise UsageError(f"panel {panel.image_id}: no output of {', '.join(missing)}")
