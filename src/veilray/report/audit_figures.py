"""Figures of an audit: ROC curves, linkage by the size of a patch, PSNR by the number of releases, the frontier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup
from matplotlib.axes import Axes

from veilray.privacy.results import AttackResult, Audit
from veilray.report.drawing import COLOURS, DASHES, FAINT, INK, canvas, styled, svg

_NOT_DRAWN = "part of the network"


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A figure with its caption and the legend of its lines."""

    image: Markup
    caption: str
    legend: tuple[tuple[str, str, str], ...]
    """Name, colour and CSS border style of each line."""


def drawings(audit: Audit) -> list[Drawing]:
    """Every figure that the audit has curves for."""
    found = [_roc(audit), _patches(audit), _releases(audit), _frontier(audit)]
    return [one for one in found if one is not None]


@styled
def _roc(audit: Audit) -> Drawing | None:
    """ROC curves of the strongest attacker among matched impostors, or among all pairs, by variant."""
    metric = "auc_matched" if any(one.metric == "auc_matched" and one.curve for one in audit.results) else "auc"
    lines = _strongest([one for one in audit.results if one.attack == "re-identification" and one.metric == metric])
    if not lines:
        return None
    figure, axes = canvas(height=3.2)
    axes.plot([0, 1], [0, 1], color=FAINT, lw=0.6)
    legend = _lines(axes, lines)
    axes.set(xlabel="False-positive rate", ylabel="True-positive rate", xlim=(0, 1), ylim=(0, 1.01))
    among = "among people alike in sex, view and age" if metric == "auc_matched" else "among all pairs"
    return Drawing(
        image=svg(figure, "roc"),
        caption=f"Re-identification: are two images of one patient? {among}; the strongest attacker on each kind of "
        "image. The thin line is guessing.",
        legend=legend,
    )


@styled
def _patches(audit: Audit) -> Drawing | None:
    lines = [one for one in audit.results if one.metric.startswith("top_1_patch_") and one.curve]
    if not lines:
        return None
    figure, axes = canvas(height=3.2)
    legend = _lines(axes, lines, marker="o")
    sides = sorted({x for one in lines for x, _ in one.curve or ()})
    axes.set_xscale("log", base=2)
    axes.set_xticks(sides, [f"{side:g}" for side in sides])
    axes.minorticks_off()
    axes.set(xlabel="Side of the central patch, pixels", ylabel="Share found", ylim=(0, 1.02))
    return Drawing(
        image=svg(figure, "patches"),
        caption="Linkage: how small a patch is enough to find the original among all of them.",
        legend=legend,
    )


@styled
def _releases(audit: Audit) -> Drawing | None:
    lines = [one for one in audit.results if one.attacker.startswith("averaging") and one.curve]
    if not lines:
        return None
    figure, axes = canvas(height=3.2)
    names = [f"{one.variant}, {'secret noise' if 'secret' in one.attacker else 'fresh noise'}" for one in lines]
    legend = _lines(axes, lines, names=names, marker="o")
    counts = sorted({x for one in lines for x, _ in one.curve or ()})
    axes.set_xscale("log", base=2)
    axes.set_xticks(counts, [f"{count:g}" for count in counts])
    axes.minorticks_off()
    axes.set(xlabel="Releases of one image", ylabel="PSNR of their average, dB")
    return Drawing(
        image=svg(figure, "releases"),
        caption="Averaging: fresh noise wears off with every release; Veilray's secret noise is the same again.",
        legend=legend,
    )


@styled
def _frontier(audit: Audit) -> Drawing | None:
    """Utility against re-identification, a point for each kind of image that has both figures."""
    metric = "auc_matched" if any(one.metric == "auc_matched" for one in audit.results) else "auc"
    known = _strongest(
        [one for one in audit.results if one.attack == "re-identification" and one.metric == metric], curves=False
    )
    quality = {one.variant: one for one in audit.results if (one.attack, one.metric) == ("reconstruction", "psnr")}
    points = [(quality[one.variant], one) for one in known if one.variant in quality]
    if len(points) < 2:
        return None
    figure, axes = canvas(height=3.6)
    for utility, risk in points:
        colour = COLOURS[{"noisy": 0, "denoised": 2}.get(audit.audited.variants[risk.variant], 1)]
        if risk.low is not None and risk.high is not None:
            axes.plot([utility.value] * 2, [risk.low, risk.high], color=colour, lw=0.8)
        axes.plot([utility.value], [risk.value], "o", ms=4, color=colour)
        axes.annotate(
            risk.variant, (utility.value, risk.value), xytext=(4, 3), textcoords="offset points", color=INK, size=7
        )
    axes.axhline(0.5, color=FAINT, lw=0.6)
    axes.margins(x=0.3, y=0.12)
    axes.set(xlabel="PSNR of the images, dB (utility)", ylabel="Re-identification, AUC (risk)")
    return Drawing(
        image=svg(figure, "frontier"),
        caption="The frontier: what images are worth against what they give away, with 95 % intervals of the risk. "
        "The lower right would be useful and private; the thin line is guessing. PSNR is that of the images as they "
        "are: those of another obfuscation were not restored by a network trained for it.",
        legend=(
            ("as released", COLOURS[0], "solid"),
            ("denoised", COLOURS[2], "solid"),
            ("others", COLOURS[1], "solid"),
        ),
    )


def _strongest(results: Sequence[AttackResult], *, curves: bool = True) -> list[AttackResult]:
    """The highest figure of each variant, of attackers who see the images, in the variants' order."""
    found: dict[str, AttackResult] = {}
    for one in results:
        if (curves and not one.curve) or one.attacker.startswith((_NOT_DRAWN, "sex, view")):
            continue
        if one.variant not in found or one.value > found[one.variant].value:
            found[one.variant] = one
    return list(found.values())


def _lines(
    axes: Axes, results: Sequence[AttackResult], *, names: Sequence[str] | None = None, marker: str | None = None
) -> tuple[tuple[str, str, str], ...]:
    legend = []
    for place, one in enumerate(results):
        colour, dashes = COLOURS[place % len(COLOURS)], DASHES[place // len(COLOURS) % len(DASHES)]
        points = one.curve or ()
        axes.plot([x for x, _ in points], [y for _, y in points], color=colour, ls=dashes, lw=1.2, marker=marker, ms=3)
        legend.append((names[place] if names else one.variant, colour, "solid" if dashes == "-" else "dashed"))
    return tuple(legend)
