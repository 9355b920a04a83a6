"""Figures of a benchmark's report: training times, where the time goes, and the effects of the factors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from veilray.evaluation.benchmark.effects import SPEED, Effect
from veilray.evaluation.benchmark.groups import Analysis, RunGroup
from veilray.report.benchmark_text import PART_NAMES, bar_label, effect_label, level_name
from veilray.report.drawing import COLOURS, FAINT, INK, styled, svg
from veilray.report.text import number

PAGE_WIDTH = 7.3
_ROW = 0.21
_HATCHES = ("", "////", "....", "xxxx", "----", "\\\\\\\\")
_PART_COLOURS = {
    "data": "#b5b5b5",
    "forward": "#0072b2",
    "backward": "#7db6dc",
    "all_reduce": "#d55e00",
    "update": "#009e73",
    "validation": "#8a6d00",
    "metrics": "#d8c36a",
    "checkpoint": "#b5609a",
    "other": "#e3e3e3",
}


@styled
def training_times(analysis: Analysis) -> Markup:
    """Training seconds by noise level, model and set-up: a bar each, mean over the seeds, every seed a dot."""
    colours = _setup_colours(analysis)
    settings = list(dict.fromkeys(_settings(group, analysis) for group in analysis.groups))
    figure, frames = _frames(analysis)
    longest = max(max(group.seconds) for group in analysis.groups)
    for axes, (_, groups) in zip(frames, _by_noise(analysis), strict=True):
        for height, group in zip(_heights(groups), groups, strict=True):
            mean = float(np.mean(group.seconds))
            hatch = _HATCHES[settings.index(_settings(group, analysis)) % len(_HATCHES)]
            colour = colours[group.levels["setup"]]
            axes.barh(height, mean, 0.74, color=colour, alpha=0.85, hatch=hatch, edgecolor="white", lw=0.0)
            if len(group.seconds) > 1:
                axes.plot(group.seconds, [height] * len(group.seconds), "o", ms=2.2, mfc="white", mec=INK, mew=0.5)
            axes.text(max(group.seconds) + 0.012 * longest, height, number(mean, 1), va="center", color=INK, size=7)
        axes.set_xlim(0, 1.12 * longest)
    frames[-1].set_xlabel("Training time, s")
    return svg(figure, "training times")


@styled
def time_split(analysis: Analysis) -> Markup:
    """Where each combination's training time goes, stacked, in per cent of its seconds."""
    figure, frames = _frames(analysis)
    for axes, (_, groups) in zip(frames, _by_noise(analysis), strict=True):
        for height, group in zip(_heights(groups), groups, strict=True):
            total = sum(group.parts.values())
            left = 0.0
            for part in _parts(analysis):
                width = 100 * group.parts.get(part, 0.0) / total if total else 0.0
                axes.barh(height, width, 0.74, left=left, color=part_colour(part), lw=0)
                if width >= 6:
                    dark = part in ("forward", "validation", "all_reduce", "update", "checkpoint")
                    ink = "white" if dark else INK
                    axes.text(left + width / 2, height, f"{width:.0f}", ha="center", va="center", size=6.5, color=ink)
                left += width
        axes.set_xlim(0, 100)
    frames[-1].set_xlabel("Share of the training time, %")
    return svg(figure, "time split")


@styled
def effects(analysis: Analysis) -> Markup:
    """Every effect with its interval: on speed as a ratio, and on PSNR as a difference."""
    rows = analysis.effects
    figure = Figure(figsize=(PAGE_WIDTH, 0.75 + 0.3 * len(rows)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for index, effect in enumerate(rows):
        height = len(rows) - 1 - index
        left.text(-0.03, height, effect_label(effect), transform=left.get_yaxis_transform(), ha="right", va="center")
        _draw_effect(left, effect, SPEED, height)
        _draw_effect(right, effect, "psnr", height)
    left.set_xscale("log")
    _ratio_ticks(left)
    left.axvline(1.0, color=INK, lw=0.6)
    right.axvline(0.0, color=INK, lw=0.6)
    right.xaxis.set_major_locator(MaxNLocator(5))
    left.set(xlabel="Images a second, ratio to the reference", ylim=(-0.6, len(rows) - 0.4))
    right.set_xlabel("PSNR, difference to the reference, dB")
    for axes in (left, right):
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x", color="#e4e4e4", lw=0.5)
    return svg(figure, "effects")


def part_colour(part: str) -> str:
    """The colour of a part of the time, in the figure and in its legend."""
    return _PART_COLOURS.get(part, FAINT)


def part_legend(analysis: Analysis) -> list[tuple[str, str]]:
    """(name, colour) of every part that takes time in some run."""
    return [(PART_NAMES.get(part, part), part_colour(part)) for part in _parts(analysis)]


def setup_legend(analysis: Analysis) -> list[tuple[str, str]]:
    """(name, colour) of every set-up."""
    return [(level_name("setup", setup), colour) for setup, colour in _setup_colours(analysis).items()]


def _parts(analysis: Analysis) -> list[str]:
    there = {part for group in analysis.groups for part in group.parts}
    return [part for part in _PART_COLOURS if part in there] + sorted(there - set(_PART_COLOURS))


def _setup_colours(analysis: Analysis) -> dict[str, str]:
    setups = list(dict.fromkeys(group.levels["setup"] for group in analysis.groups))
    return {setup: COLOURS[index % len(COLOURS)] for index, setup in enumerate(setups)}


def _settings(group: RunGroup, analysis: Analysis) -> tuple[str, ...]:
    """Levels that have no colour: they are told apart by hatching."""
    return tuple(group.levels[name] for name in analysis.varied if name not in ("model", "noise", "setup"))


def _by_noise(analysis: Analysis) -> list[tuple[str, list[RunGroup]]]:
    levels = dict.fromkeys(group.levels["noise"] for group in analysis.groups)
    return [(level, [group for group in analysis.groups if group.levels["noise"] == level]) for level in levels]


def _frames(analysis: Analysis) -> tuple[Figure, list[Axes]]:
    """A frame for each noise level, a row for each of its combinations, with a gap between models."""
    levels = _by_noise(analysis)
    spans = [max(_heights(groups)) + 1.2 for _, groups in levels]
    figure = Figure(figsize=(PAGE_WIDTH, 0.55 + sum(_ROW * span + 0.22 for span in spans)), layout="constrained")
    grid = figure.subplots(len(levels), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": spans})
    frames = [row[0] for row in grid]
    for axes, (level, groups), span in zip(frames, levels, spans, strict=True):
        axes.set_ylim(-0.7, span - 0.5)
        axes.set_yticks(_heights(groups), [""] * len(groups))
        axes.tick_params(axis="y", length=0)
        axes.set_title(f"{level_name('noise', level)} noise", loc="left", fontsize=8, fontweight="bold", color=INK)
        for height, group in zip(_heights(groups), groups, strict=True):
            label = bar_label(group.levels, analysis)
            axes.text(-0.012, height, label, transform=axes.get_yaxis_transform(), ha="right", va="center", color=INK)
        axes.grid(axis="x", color="#e4e4e4", lw=0.5)
        axes.grid(axis="y", visible=False)
    return figure, frames


def _heights(groups: Sequence[RunGroup]) -> list[float]:
    """Where each row lies, the first at the top; half a row more between two models."""
    gaps, depths = 0.0, []
    for index, group in enumerate(groups):
        if index and group.levels["model"] != groups[index - 1].levels["model"]:
            gaps += 0.5
        depths.append(index + gaps)
    return [depths[-1] - depth for depth in depths]


def _draw_effect(axes: Axes, effect: Effect, measure: str, height: float) -> None:
    estimate = effect.measures.get(measure)
    if estimate is None:
        return
    axes.plot([estimate.smallest, estimate.largest], [height] * 2, color="#b9cfe0", lw=5, solid_capstyle="butt")
    if estimate.low is not None and estimate.high is not None:
        axes.plot([estimate.low, estimate.high], [height] * 2, color=COLOURS[0], lw=1.1)
    axes.plot([estimate.mean], [height], "o", ms=4, color=COLOURS[0])


def _ratio_ticks(axes: Axes) -> None:
    low, high = axes.get_xlim()
    if high / low > 4:
        steps = (1.0,) if high / low > 100 else (1.0, 3.0) if high / low > 20 else (1.0, 2.0, 5.0)
        ticks = [step * 10.0**power for power in range(-6, 7) for step in steps]
    else:
        ticks = list(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high))
    axes.set_xticks(sorted({1.0, *(tick for tick in ticks if low < tick < high)}))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlim(low, high)
