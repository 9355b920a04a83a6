"""Words of a benchmark's report; every figure comes from its analysis."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from veilray.evaluation.benchmark.effects import SPEED, Effect, Estimate
from veilray.evaluation.benchmark.groups import BUSY, Analysis
from veilray.evaluation.benchmark.plan import SINGLE
from veilray.evaluation.benchmark.record import done
from veilray.evaluation.labels import as_text, phrase
from veilray.models.config import TITLES
from veilray.report.text import count, listed, number, score, with_unit

FACTOR_NAMES = {
    "model": "Model",
    "noise": "Noise",
    "setup": "Set-up",
    "precision": "Precision",
    "layout": "Memory format",
    "compile": "Compilation",
    "prefetch": "Loader",
}
PART_NAMES = {
    "data": "data",
    "forward": "forward",
    "backward": "backward",
    "all_reduce": "all-reduce",
    "update": "update",
    "validation": "validation",
    "metrics": "metrics",
    "checkpoint": "checkpoints",
    "other": "other",
}
NARROW = "\N{NARROW NO-BREAK SPACE}"
_GIGA = 1e9
_TERA = 1e12


def level_name(factor: str, level: str) -> str:
    """A level in words: `U-Net++`, `20 %`, `DDP, 2 devices`."""
    match factor:
        case "model":
            return TITLES.get(level, level)
        case "noise":
            return "–".join(f"{100 * float(part):.6g}" for part in level.split("-")) + "\N{NO-BREAK SPACE}%"
        case "setup" if level == SINGLE:
            return "one device"
        case "setup":
            kind, _, devices = level.partition(":")
            return f"{ {'dp': 'DataParallel', 'ddp': 'DDP'}[kind] }, {count(int(devices), 'device')}"
        case "layout":
            return {"contiguous": "NCHW", "channels_last": "NHWC"}.get(level, level)
        case "compile":
            return {"no": "eager", "yes": "compiled"}.get(level, level)
        case "prefetch":
            return "loads in the step" if level == "0" else f"{level} batches ahead"
        case _:
            return level


def settings_text(levels: Mapping[str, str], analysis: Analysis) -> str:
    """What else tells a combination apart, adjustments of the plan included: `fp16, NHWC`, `batch 64`."""
    words = [level_name(name, levels[name]) for name in analysis.varied if name not in ("model", "noise", "setup")]
    adjusted: dict[str, Any] = {}
    for adjustment in analysis.plan.adjust:
        if all(levels[factor] == level for factor, level in adjustment.when.items()):
            adjusted |= flat(adjustment.settings)
    return ", ".join(filter(None, [*words, *(phrase(key, as_text(value)) for key, value in adjusted.items())]))


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by their dotted keys."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def bar_label(levels: Mapping[str, str], analysis: Analysis) -> str:
    """A combination without its noise, for a row of a figure."""
    names = [level_name(name, levels[name]) for name in ("model", "setup")]
    return ", ".join(filter(None, [*names, settings_text(levels, analysis)]))


def effect_label(effect: Effect) -> str:
    """What is held against what: `DDP, 2 devices / one device`."""
    return f"{level_name(effect.factor, effect.level)} / {level_name(effect.factor, effect.reference)}"


def estimate_text(estimate: Estimate | None, measure: str) -> tuple[str, str]:
    """A mean and its interval: a ratio as `1.23×`, a share saved in per cent, a difference in the metric's decimals."""
    if estimate is None:
        return "–", ""

    def one(value: float) -> str:
        match measure:
            case "saved":
                return f"{number(100 * value, 1)}{NARROW}%"
            case "ratio" | "images_per_second":
                return f"{number(value, 3)}×"
            case _:
                return score(measure, value, sign=True)

    if estimate.low is None or estimate.high is None:
        return one(estimate.mean), "no interval"
    return one(estimate.mean), f"{one(estimate.low)} to {one(estimate.high)}"


def sample_text(estimate: Estimate | None) -> tuple[str, str]:
    """How many pairs an estimate comes from: `8`, `4 comb., 2 seeds`."""
    if estimate is None:
        return "0", ""
    return number(estimate.pairs, 0), f"{number(estimate.combinations, 0)} comb., {count(estimate.seeds, 'seed')}"


def rate_text(operations: float) -> str:
    """Floating-point operations a second."""
    scaled, unit = (operations / _TERA, "TFLOP/s") if operations >= _TERA else (operations / _GIGA, "GFLOP/s")
    return f"{number(scaled, 1)}\N{NO-BREAK SPACE}{unit}"


def memory_text(size: int | None) -> str:
    """Bytes as MiB or GiB."""
    if size is None:
        return "–"
    scaled, unit = (size / 2**30, "GiB") if size >= 2**30 else (size / 2**20, "MiB")
    return f"{number(scaled, 2 if unit == 'GiB' else 0)}\N{NO-BREAK SPACE}{unit}"


def also_text(also: Sequence[str]) -> str:
    """What differs besides the factor, where something does."""
    return f"with {listed(list(also))}" if also else ""


def title(analysis: Analysis) -> str:
    """What was trained, and how it was spread."""
    models = listed([level_name("model", level) for level in _levels(analysis, "model")])
    strengths = listed([level_name("noise", level) for level in _levels(analysis, "noise")])
    return f"Training {models} on one device and on several, at {strengths} noise: time and quality"


def abstract(analysis: Analysis) -> list[str]:
    """The outcome in a few sentences."""
    finished = done(analysis.records)
    names = {str(record.environment.get("device_name", "unknown device")) for record in finished}
    hardware = listed(sorted({re.sub(r", \d+ threads?$", "", name) for name in names}))
    opening = (
        f"{count(len(finished), 'training')} of {count(len(analysis.groups), 'combination')} of "
        f"{listed([FACTOR_NAMES[name].lower() for name in analysis.varied]) or 'settings'}, with "
        f"{count(len({record.seed for record in finished}), 'seed')} each, on {hardware}; every one scored on "
        f"{count(analysis.images, 'test radiograph')} of {count(analysis.patients, 'patient')}."
    )
    missing = [f"{count(number_of, 'run')} {word}" for word, number_of in _missing(analysis) if number_of]
    rest = [f"Not in the figures: {listed(missing)} (reasons at the end)."] if missing else []
    busy = (
        ["The machine was busy with other work: the times below are not to be quoted."] if analysis.load > BUSY else []
    )
    return [opening, *busy, *_speed_and_quality(analysis), *rest]


def _speed_and_quality(analysis: Analysis) -> list[str]:
    """A sentence for each effect of a factor that is meant to save time."""
    said = []
    for effect in analysis.effects:
        if effect.factor in ("model", "noise") or SPEED not in effect.measures:
            continue
        speed, speed_ends = estimate_text(effect.measures[SPEED], SPEED)
        sentence = (
            f"{_capital(level_name(effect.factor, effect.level))} trained {speed} as many images a second as "
            f"{level_name(effect.factor, effect.reference)} ({speed_ends})"
        )
        if "psnr" in effect.measures:
            quality, quality_ends = estimate_text(effect.measures["psnr"], "psnr")
            sentence += f", and changed PSNR by {with_unit('psnr', quality)} ({quality_ends})"
        if effect.also:
            sentence += f"; this is not the effect of the {FACTOR_NAMES[effect.factor].lower()} alone, since "
            sentence += f"{listed(list(effect.also))} changed with it"
        said.append(f"{sentence}.")
    return said


def _levels(analysis: Analysis, factor: str) -> list[str]:
    return list(dict.fromkeys(group.levels[factor] for group in analysis.groups))


def _missing(analysis: Analysis) -> list[tuple[str, int]]:
    words = {"skipped": "that this machine cannot do", "failed": "that failed"}
    return [
        (words[status], sum(record.status == status for record in analysis.records)) for status in ("skipped", "failed")
    ]


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
