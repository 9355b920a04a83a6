"""What the figures of every report share: their style, and the way from matplotlib to SVG on a page."""

from __future__ import annotations

import functools
import hashlib
import io
import re
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

P = ParamSpec("P")
T = TypeVar("T")

# Okabe and Ito's palette, which colour-blind readers can tell apart, dark enough for thin lines on white; the line
# styles tell the arms apart on a black-and-white print.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#b5609a", "#8a6d00", "#3b8fb5", "#444444")
DASHES = ("-", "--", "-.", ":")
INK = "#222222"
FAINT = "#767676"
_STYLE: Any = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 8.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
}
_FONT = "Helvetica, Arial, 'Liberation Sans', sans-serif"


def styled(draw: Callable[P, T]) -> Callable[P, T]:
    """Draw in the page's style and leave matplotlib's own settings as they were."""

    @functools.wraps(draw)
    def drawn(*args: P.args, **options: P.kwargs) -> T:
        with matplotlib.rc_context(_STYLE):
            return draw(*args, **options)

    return drawn


def canvas(*, height: float, width: float = 3.5) -> tuple[Figure, Axes]:
    """A figure of one frame; sizes are in inches, 3.5 being a column of the page and 7.3 its whole width."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.grid(axis="y", color="#e4e4e4", lw=0.5)
    return figure, axes


def svg(figure: Figure, name: str) -> Markup:
    """A figure as one SVG element that fills its column; ids carry a prefix so that figures share a page."""
    prefix = "f" + hashlib.sha256(name.encode()).hexdigest()[:8]
    stream = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": prefix}):
        figure.savefig(stream, format="svg", metadata={"Date": None})
    text = stream.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    text = re.sub(r'(href="|url\()#', rf"\g<1>#{prefix}-", text)
    text = text.replace('xmlns:xlink="http://www.w3.org/1999/xlink"', "").replace("xlink:href", "href")
    text = re.sub(r"'DejaVu Sans'[^;\"]*", _FONT, text)
    text = re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" role="img">', text, count=1)
    return Markup(text)
