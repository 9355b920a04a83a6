"""Render a benchmark's analysis as one self-contained HTML page."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from veilray.evaluation.benchmark.effects import QUALITY, SPEED, Effect, Saving
from veilray.evaluation.benchmark.groups import Analysis, RunGroup
from veilray.evaluation.benchmark.plan import SETTING_OF, SINGLE, dump_plan
from veilray.evaluation.benchmark.record import RunRecord, done
from veilray.evaluation.labels import as_text
from veilray.evaluation.results import METRICS
from veilray.files import write_text
from veilray.metrics.interval import Interval
from veilray.report import benchmark_figures as figures
from veilray.report import benchmark_text as words
from veilray.report import text
from veilray.report.benchmark_limits import benchmark_limits
from veilray.report.pages import pages, style_sheet

_ENVIRONMENT = {
    "device_name": "Hardware",
    "threads": "CPU threads of a process",
    "platform": "Operating system",
    "python": "Python",
    "torch": "PyTorch",
    "veilray": "Veilray",
    "git_commit": "Source revision",
}


def render_benchmark(analysis: Analysis, out: Path) -> None:
    """Write the report of a benchmark to `out`, whole or not at all."""
    write_text(out, benchmark_html(analysis))


def benchmark_html(analysis: Analysis) -> str:
    """The report of a benchmark as one HTML document that refers to nothing outside itself."""
    return pages().get_template("benchmark.html.j2").render(_context(analysis))


def _context(analysis: Analysis) -> Mapping[str, Any]:
    finished = done(analysis.records)
    metrics = [name for name in METRICS if _is_shown(name, analysis)]
    split = bool(any(group.parts for group in analysis.groups))
    return {
        "analysis": analysis,
        "words": words,
        "css": style_sheet(),
        "title": words.title(analysis),
        "abstract": words.abstract(analysis),
        "digest": finished[0].cohort_digest,
        "seeds": text.listed([str(seed) for seed in dict.fromkeys(record.seed for record in finished)]),
        "factors": _factors(analysis),
        "metrics": metrics,
        "tables": _by_noise([_quality_row(group, analysis, metrics) for group in analysis.groups]),
        "noisy": {level: [_cell(name, means.get(name)) for name in metrics] for level, means in analysis.noisy.items()},
        "savings": [_saving_row(saving, analysis) for saving in analysis.savings],
        "speeds": _by_noise([_speed_row(group, analysis) for group in analysis.groups]),
        "effects": [_effect_row(effect) for effect in analysis.effects],
        "times_figure": figures.training_times(analysis),
        "setup_legend": figures.setup_legend(analysis),
        "split_figure": figures.time_split(analysis) if split else None,
        "part_legend": figures.part_legend(analysis),
        "effects_figure": figures.effects(analysis) if analysis.effects else None,
        "missing": _missing(analysis.records),
        "limits": benchmark_limits(analysis),
        "environment": _environment(finished),
        "shared_patients": max(int(record.environment.get("shared_patients") or 0) for record in finished),
        "sets": {name: finished[0].environment.get(f"n_{name}") for name in ("train", "validation", "test")},
        "adjustments": _adjustments(analysis),
        "plan_toml": _plan_text(analysis),
        "commands": _commands(analysis, finished),
    }


def _is_shown(metric: str, analysis: Analysis) -> bool:
    # PSNR of the raw output belongs to the paper's protocol alone; what else is missing is said to be missing.
    return metric != "psnr_unclamped" or any(group.metrics.get(metric) for group in analysis.groups)


def _factors(analysis: Analysis) -> list[tuple[str, str, bool]]:
    """(name, levels, whether it varies) of every factor."""
    rows = []
    for factor in SETTING_OF:
        levels = dict.fromkeys(record.levels[factor] for record in analysis.records)
        names = [words.level_name(factor, level) for level in levels]
        rows.append((words.FACTOR_NAMES[factor], "; ".join(names), len(levels) > 1))
    return rows


def _adjustments(analysis: Analysis) -> list[tuple[str, list[str]]]:
    """(levels, settings that go with them) of the plan."""
    return [
        (
            text.listed([words.level_name(factor, level) for factor, level in adjustment.when.items()]),
            [f"{key} = {as_text(value)}" for key, value in words.flat(adjustment.settings).items()],
        )
        for adjustment in analysis.plan.adjust
    ]


def _by_noise(rows: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Rows by noise level, each marked where the model is another one than above."""
    tables: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        above = tables.setdefault(row["noise"], [])
        above.append(row | {"first_of_model": not above or above[-1]["model"] != row["model"]})
    return tables


def _named(levels: Mapping[str, str], analysis: Analysis) -> dict[str, Any]:
    return {
        "noise": levels["noise"],
        "model": words.level_name("model", levels["model"]),
        "setup": words.level_name("setup", levels["setup"]),
        "settings": words.settings_text(levels, analysis),
    }


def _quality_row(group: RunGroup, analysis: Analysis, metrics: Sequence[str]) -> dict[str, Any]:
    saving = next((one for one in analysis.savings if one.levels == group.levels), None)
    several = len(group.seconds) > 1
    mean = sum(group.seconds) / len(group.seconds)
    saved = None if saving is None or saving.published is None else saving.published
    return _named(group.levels, analysis) | {
        "cells": [_cell(name, group.metrics.get(name)) for name in metrics],
        "seconds": text.seconds(mean),
        "seconds_range": f"{text.seconds(min(group.seconds))} to {text.seconds(max(group.seconds))}" if several else "",
        "saved": "–" if saved is None else f"{text.number(100 * saved, 1)}{words.NARROW}%",
    }


def _cell(metric: str, interval: Interval | None) -> dict[str, str] | None:
    if interval is None:
        return None
    return {"mean": text.score(metric, interval.mean), "ends": text.ends(metric, interval)}


def _saving_row(saving: Saving, analysis: Analysis) -> dict[str, Any]:
    gpu = any(record.environment.get("device") == "cuda" for record in done(analysis.records))
    efficiency = None if saving.speedup is None or not gpu else saving.speedup.mean / saving.devices
    return _named(saving.levels, analysis) | {
        "noise": words.level_name("noise", saving.levels["noise"]),
        "published": "–" if saving.published is None else f"{text.number(100 * saving.published, 1)}{words.NARROW}%",
        "saved": words.estimate_text(saving.saved, "saved"),
        "speedup": words.estimate_text(saving.speedup, "ratio"),
        "efficiency": "–" if efficiency is None else text.share(efficiency),
        "psnr": words.estimate_text(saving.quality.get("psnr"), "psnr"),
        "pairs": 0 if saving.speedup is None else saving.speedup.pairs,
        "also": words.also_text(saving.also),
    }


def _speed_row(group: RunGroup, analysis: Analysis) -> dict[str, Any]:
    speeds = group.images_per_second
    rate = group.share_of_peak * group.peak_per_second
    return _named(group.levels, analysis) | {
        "images": text.number(sum(speeds) / len(speeds), 1),
        "images_range": f"{text.number(min(speeds), 1)} to {text.number(max(speeds), 1)}" if len(speeds) > 1 else "",
        "operations": f"{group.operations_per_image / 1e9:.3g}",
        "rate": words.rate_text(rate),
        "peak": words.rate_text(group.peak_per_second),
        "share": f"{text.number(100 * group.share_of_peak, 1)}{words.NARROW}%",
        "memory": words.memory_text(group.peak_memory_bytes),
        "metrics": "–" if group.metric_share is None else f"{text.number(100 * group.metric_share, 1)}{words.NARROW}%",
    }


def _effect_row(effect: Effect) -> dict[str, Any]:
    shown = {name: words.estimate_text(effect.measures.get(name), name) for name in (SPEED, *QUALITY)}
    spread = effect.measures.get(SPEED)
    return {
        "label": words.effect_label(effect),
        "measures": shown,
        "spread": ""
        if spread is None or spread.combinations == 1
        else f"{text.number(spread.smallest, 3)}× to {text.number(spread.largest, 3)}×",
        "sample": words.sample_text(spread),
        "also": words.also_text(effect.also),
    }


def _missing(records: Sequence[RunRecord]) -> list[dict[str, Any]]:
    """Runs without figures, by reason."""
    reasons: dict[tuple[str, str], list[RunRecord]] = {}
    for record in records:
        if record.status != "done":
            reasons.setdefault((record.status, record.reason), []).append(record)
    return [
        {"status": status, "reason": reason, "runs": [record.name for record in found]}
        for (status, reason), found in reasons.items()
    ]


def _environment(finished: Sequence[RunRecord]) -> list[tuple[str, str]]:
    rows = []
    for key, name in _ENVIRONMENT.items():
        values = dict.fromkeys(str(record.environment[key]) for record in finished if record.environment.get(key))
        if values:
            rows.append((name, "; ".join(values)))
    first, last = (choose(record.recorded for record in finished) for choose in (min, max))
    return [*rows, ("Recorded", f"{first} to {last}" if first != last else first)]


def _plan_text(analysis: Analysis) -> str:
    # A report travels; where the base lay on this machine need not.
    return dump_plan(analysis.plan.model_copy(update={"base": Path(analysis.plan.base).name}))


def _commands(analysis: Analysis, finished: Sequence[RunRecord]) -> list[str]:
    cohort = shlex.quote(Path(str(finished[0].environment.get("cohort") or "COHORT")).name)
    single = next((record for record in finished if record.levels["setup"] == SINGLE), finished[0])
    devices = f" --devices {single.devices}" if single.devices > 1 else ""
    return [
        f"veilray benchmark plan.toml --data {cohort} --out again",
        f"veilray train configs/{single.name}.toml --data {cohort} --out one-run{devices}",
        f"veilray evaluate one-run --data {cohort}",
    ]
