"""Figures as SVG for a page: learning curves, scores by image and paired differences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import matplotlib.ticker
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from veilray.evaluation.comparison import Comparison, Level, Scores
from veilray.report.drawing import COLOURS, DASHES, FAINT, INK, canvas, styled, svg
from veilray.training.run import EpochRecord


@dataclass(frozen=True, kw_only=True)
class Stroke:
    """How an arm is drawn in every figure."""

    label: str
    colour: str
    dashes: str

    @property
    def css(self) -> str:
        """The style of the same line in CSS, for the legend."""
        return {"-": "solid", "--": "dashed", "-.": "dashed", ":": "dotted"}[self.dashes]


def strokes(comparison: Comparison) -> dict[str, Stroke]:
    """One stroke for each method, the same at every noise level."""
    labels = dict.fromkeys(arm.label for level in comparison.levels for arm in level.models)
    others = dict.fromkeys(arm.label for level in comparison.levels for arm in level.arms if arm.kind != "model")
    chosen = {label: Stroke(label=label, colour=FAINT, dashes=":") for label in others}
    for index, label in enumerate(labels):
        chosen[label] = Stroke(label=label, colour=COLOURS[index % len(COLOURS)], dashes=DASHES[index % len(DASHES)])
    return chosen


@styled
def learning_curves(level: Level, styles: dict[str, Stroke]) -> list[Markup]:
    """Validation loss and PSNR against epochs and against seconds: four figures, every seed a line."""
    figures = []
    for y_label, value, is_loss in (
        ("Validation loss", lambda record: record.validation_loss, True),
        ("Validation PSNR, dB", lambda record: record.validation_psnr, False),
    ):
        for x_label, position in (
            ("Epoch", lambda record: record.epoch),
            ("Training time, s", lambda record: record.seconds),
        ):
            figure, axes = canvas(height=2.1)
            _draw_curves(axes, level, styles, position, value)
            axes.set(xlabel=x_label, ylabel=y_label)
            if is_loss and _ratio(level) > 3:
                axes.set_yscale("log")
                axes.yaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1.0, 2.0, 3.0, 5.0)))
                axes.yaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
                axes.yaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
            elif not is_loss:
                _zoom(axes, level)
            axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(6, integer=True))
            figures.append(svg(figure, f"{level.label} {x_label} {y_label}"))
    return figures


@styled
def scores_by_image(level: Level, styles: dict[str, Stroke]) -> Markup:
    """The distribution of PSNR over the test images, by method."""
    named = [(arm.label, arm.scores["psnr"], styles[arm.label].colour) for arm in level.arms]
    rows = [(label, values, colour) for label, values, colour in named if values is not None]
    figure = _distributions(rows, "PSNR of an image, dB", zero=False)
    return svg(figure, f"{level.label} scores")


@styled
def paired_differences(level: Level) -> Markup:
    """The distribution of the difference in PSNR between two methods on the same image, by pair."""
    models = {arm.label for arm in level.models}
    pairs = [pair for pair in level.pairs if pair.metric == "psnr"]
    # A classical method may be many dB away, and would press the differences between models into a line.
    between_models = [pair for pair in pairs if {pair.first, pair.second} <= models]
    rows = [(f"{pair.first}\n− {pair.second}", pair.per_image, INK) for pair in between_models or pairs]
    return svg(_distributions(rows, "Difference in PSNR on an image, dB", zero=True), f"{level.label} pairs")


def _draw_curves(
    axes: Axes,
    level: Level,
    styles: dict[str, Stroke],
    position: Callable[[EpochRecord], float],
    value: Callable[[EpochRecord], float | None],
) -> None:
    for arm in level.models:
        stroke = styles[arm.label]
        for run in arm.runs:
            values = [(position(record), value(record)) for record in run.curve]
            points = [(x, y) for x, y in values if y is not None]
            marker = "o" if len(points) < 3 else None
            axes.plot(*_columns(points), color=stroke.colour, ls=stroke.dashes, lw=1.1, marker=marker, ms=2.5)
            best = run.best_epoch
            height = None if best is None else value(best)
            if best is not None and height is not None:
                axes.plot([position(best)], [height], "o", ms=4, mfc="white", mec=stroke.colour, mew=1.1)


def _columns(points: list[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _ratio(level: Level) -> float:
    """Of the largest to the smallest validation loss, which tells whether a logarithmic axis has ticks to show."""
    losses = [record.validation_loss for arm in level.models for run in arm.runs for record in run.curve]
    if not losses or min(losses) <= 0:  # an estimate of the squared error may be negative
        return 1.0
    return max(losses) / min(losses)


def _zoom(axes: Axes, level: Level) -> None:
    """Leave the first, steep epochs below the frame, so that the differences at the end can be seen."""
    curves = [record.validation_psnr for arm in level.models for run in arm.runs for record in run.curve]
    values = np.array([decibels for decibels in curves if decibels is not None])
    if len(values) < 10:
        return
    low, high = float(np.quantile(values, 0.1)), float(values.max())
    margin = max(0.06 * (high - low), 0.05)
    axes.set_ylim(low - margin, high + margin)


def _distributions(rows: Sequence[tuple[str, Scores, str]], x_label: str, *, zero: bool) -> Figure:
    figure, axes = canvas(height=0.6 + 0.46 * len(rows))
    everything = np.concatenate([values for _, values, _ in rows])
    low, high = float(everything.min()), float(everything.max())
    edges = np.linspace(low, high if high > low else low + 1e-6, 49)
    for index, (_, values, colour) in enumerate(rows):
        centre = len(rows) - 1 - index
        counts = np.histogram(values, bins=edges)[0] / max(len(values), 1)
        heights = 0.62 * counts / max(float(counts.max()), 1e-12)
        axes.stairs(centre + heights, edges, baseline=centre, fill=True, color=colour, alpha=0.28, lw=0)
        outer, quarters = np.quantile(values, [0.05, 0.95]), np.quantile(values, [0.25, 0.75])
        line = centre - 0.14
        axes.plot(outer, [line, line], color=colour, lw=0.8, solid_capstyle="butt")
        axes.plot(quarters, [line, line], color=colour, lw=3.4, solid_capstyle="butt")
        axes.plot([float(np.median(values))], [line], "o", ms=3.4, mfc="white", mec=colour, mew=0.9)
    if zero:
        axes.axvline(0.0, color=INK, lw=0.6)
    axes.set(xlabel=x_label, ylim=(-0.42, len(rows) - 0.2))
    axes.set_yticks(range(len(rows)), [""] * len(rows))
    axes.tick_params(axis="y", length=0)
    for index, (label, _, _) in enumerate(rows):
        _write_name(axes, label, len(rows) - 1 - index)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", color="#e4e4e4", lw=0.5)
    return figure


def _write_name(axes: Axes, label: str, height: float) -> None:
    # One text a line, since a page's font is not the one that matplotlib measures a block of lines with.
    lines = label.split("\n")
    for place, line in enumerate(lines):
        above = 0.32 * ((len(lines) - 1) / 2 - place)
        place_of = axes.get_yaxis_transform()
        axes.text(-0.03, height + above, line, transform=place_of, ha="right", va="center", color=INK)
