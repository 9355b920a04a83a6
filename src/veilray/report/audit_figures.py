"""Figures of an audit: ROC curves, linkage by the size of a patch, PSNR by the number of releases, the frontier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup
from matplotlib.axes import Axes

from veilray.privacy.catalogue import DENOISER, OF_PATCH, listed
from veilray.privacy.results import FEW_PATIENTS, AttackResult, Audit, few_patients_note
from veilray.report.audit_text import alike
from veilray.report.drawing import COLOURS, DASHES, FAINT, INK, canvas, styled, svg


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
    among = f"among people {alike(audit)}" if metric == "auc_matched" else "among all pairs"
    return Drawing(
        image=svg(figure, "roc"),
        caption=f"Re-identification: are two images of one patient? {among}; the strongest attacker on each kind of "
        "image. The thin line is guessing." + _few(lines),
        legend=legend,
    )


@styled
def _patches(audit: Audit) -> Drawing | None:
    lines = [one for one in audit.results if one.metric.startswith(OF_PATCH) and one.curve]
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
        caption="Linkage: how small a patch is enough to find the original among all of them." + _few(lines),
        legend=legend,
    )


@styled
def _releases(audit: Audit) -> Drawing | None:
    lines = [one for one in audit.results if one.metric == "psnr_of_releases" and one.curve]
    if not lines:
        return None
    figure, axes = canvas(height=3.2)
    names = [f"{one.variant}, {one.noise} noise" for one in lines]
    legend = _lines(axes, lines, names=names, marker="o")
    counts = sorted({x for one in lines for x, _ in one.curve or ()})
    axes.set_xscale("log", base=2)
    axes.set_xticks(counts, [f"{count:g}" for count in counts])
    axes.minorticks_off()
    axes.set(xlabel="Releases of one image", ylabel="PSNR of their average, dB")
    return Drawing(
        image=svg(figure, "releases"),
        caption="Averaging: fresh noise wears off with every release; Veilray's secret noise is the same again."
        + _few(lines),
        legend=legend,
    )


@styled
def _frontier(audit: Audit) -> Drawing | None:
    points = frontier_points(audit)
    if len(points) < 2:
        return None
    figure, axes = canvas(height=3.6)
    draw_frontier(axes, audit, points)
    return Drawing(
        image=svg(figure, "frontier"),
        caption="The frontier: what images are worth against what they give away, with 95 % intervals of the risk. "
        "The lower right would be useful and private. The risk is that of the images as they leave or as a network "
        "restored them, whichever is higher; the broken line is that of images without protection, the dotted one "
        "that of metadata without any pixel, the thin one guessing. The PSNR is that "
        f"{utility_words(audit)}, on the same images each time; hollow: nothing restores more than the image itself."
        + _few([one for point in points for one in (point.utility, point.risk)]),
        legend=(("noise", COLOURS[0], "solid"), ("other obfuscations", COLOURS[1], "solid")),
    )


@dataclass(frozen=True, kw_only=True)
class FrontierPoint:
    """What one protection is worth, and what it gives away."""

    protection: str
    """Name of the images as they leave."""
    utility: AttackResult
    """The highest PSNR: as they leave, or as one of the networks restored them."""
    risk: AttackResult
    """AUC of re-identification by the strongest attacker, on the images as they leave or restored."""
    restored: bool


def frontier_points(audit: Audit) -> list[FrontierPoint]:
    """A point for each protection that has both figures, in the audit's order."""
    quality = {one.variant: one for one in audit.results if (one.attack, one.metric) == ("reconstruction", "psnr")}
    known = {one.variant: one for one in _risks(audit)}
    found = []
    for name, kind in audit.audited.variants.items():
        if kind == "clean" or name in audit.audited.restored:
            continue
        seen = [name, *(one for one, source in audit.audited.restored.items() if source == name)]
        utilities = [quality[one] for one in seen if one in quality]
        risks = [known[one] for one in seen if one in known]
        if utilities and risks:
            utility, risk = (max(some, key=lambda one: one.value) for some in (utilities, risks))
            found.append(FrontierPoint(protection=name, utility=utility, risk=risk, restored=utility.variant != name))
    return found


def utility_words(audit: Audit) -> str:
    """What was done to images whose PSNR is their utility."""
    steps = audit.audited.restorer_steps
    trained = f"a network trained {steps} steps" if steps else ""
    made = [one.attacker for one in audit.results if one.metric == "psnr" and one.variant in audit.audited.restored]
    given = "the given denoiser" if DENOISER in made else ""
    best = [one for one in ("nothing", trained, given) if one]
    return f"after the better of {listed(best)}" if len(best) > 1 else "as they leave"


def draw_frontier(axes: Axes, audit: Audit, points: Sequence[FrontierPoint]) -> None:
    """The points with their names in a column at the right, so that none lies on another."""
    for one in _risks(audit):
        if audit.audited.variants.get(one.variant) == "clean":
            axes.axhline(one.value, color=INK, lw=0.8, ls="--")
    for one in _of_identity(audit):
        if one.role == "baseline" and audit.audited.variants.get(one.variant) == "clean":
            axes.axhline(one.value, color=INK, lw=0.8, ls=":")
    axes.axhline(0.5, color=FAINT, lw=0.6)
    for point in points:
        x, risk, colour = point.utility.value, point.risk, _colour(point)
        if risk.low is not None and risk.high is not None:
            axes.plot([x, x], [risk.low, risk.high], color=colour, lw=0.8)
        axes.plot([x], [risk.value], "o", ms=4, color=colour, mfc=colour if point.restored else "white")
    axes.margins(x=0.08, y=0.08)
    low, high = axes.get_ylim()
    axes.set(xlabel=f"PSNR {utility_words(audit)}, dB", ylabel="Re-identification, AUC (risk)", ylim=(low, high))
    ordered = sorted(points, key=lambda one: (one.risk.value, one.utility.value))
    heights = spread([(one.risk.value - low) / (high - low) for one in ordered], apart=0.075)
    for point, height in zip(ordered, heights, strict=True):
        axes.annotate(
            point.protection,
            (point.utility.value, point.risk.value),
            xytext=(1.03, height),
            textcoords="axes fraction",
            va="center",
            color=_colour(point),
            size=7,
            arrowprops={"arrowstyle": "-", "color": FAINT, "lw": 0.4, "shrinkA": 1, "shrinkB": 3},
        )


def _risks(audit: Audit) -> list[AttackResult]:
    return _strongest(_of_identity(audit), curves=False)


def _of_identity(audit: Audit) -> list[AttackResult]:
    """The figures of re-identification that the frontier takes for the risk."""
    metric = "auc_matched" if any(one.metric == "auc_matched" for one in audit.results) else "auc"
    return [one for one in audit.results if one.attack == "re-identification" and one.metric == metric]


def _colour(point: FrontierPoint) -> str:
    return COLOURS[0 if "noise" in point.protection else 1]


def spread(heights: Sequence[float], *, apart: float) -> list[float]:
    """Ascending heights from 0 to 1, moved as little as it takes to lie apart."""
    placed: list[float] = []
    for height in heights:
        placed.append(max(height, placed[-1] + apart) if placed else max(height, 0.0))
    ceiling = 1.0
    for place in reversed(range(len(placed))):
        placed[place] = min(placed[place], ceiling)
        ceiling = placed[place] - apart
    return placed


def _few(results: Sequence[AttackResult]) -> str:
    """What a caption says where a figure of its drawing is from few patients."""
    few = [one.n_patients for one in results if one.n_patients < FEW_PATIENTS]
    return f" Some of it is {few_patients_note(min(few))}." if few else ""


def _strongest(results: Sequence[AttackResult], *, curves: bool = True) -> list[AttackResult]:
    """The highest figure of each variant, of attackers who see the images, in the variants' order."""
    found: dict[str, AttackResult] = {}
    for one in results:
        if (curves and not one.curve) or one.role != "attacker":
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
