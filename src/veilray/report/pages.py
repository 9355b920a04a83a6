"""What the pages of every report share: their templates, their style sheet, and where lines may end."""

from __future__ import annotations

import re
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from veilray.report import text


def pages() -> Environment:
    """The templates, with `text` for numbers and the filter `unbroken` for sentences; a name without a value is an
    error."""
    environment = Environment(
        loader=PackageLoader("veilray.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["text"] = text
    environment.filters["unbroken"] = _unbroken
    return environment


def style_sheet() -> Markup:
    """The style sheet that goes into every page."""
    return Markup(files("veilray.report").joinpath("templates/report.css").read_text(encoding="utf-8"))


def _unbroken(sentence: str) -> Markup:
    """A sentence in which no line ends within the name of an architecture or a p-value."""
    return Markup(
        re.sub(r"U-Net(\+\+)?|p-value|p [=<] [\d.]+", r'<span class="unbroken">\g<0></span>', str(escape(sentence)))
    )
