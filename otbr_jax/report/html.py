"""Pages from the templates in `templates/`, with figures inside them. A page loads nothing from anywhere."""

from __future__ import annotations

import base64
import io
from typing import Any, NamedTuple

import jinja2
from matplotlib.figure import Figure

_PAGES = jinja2.Environment(
    loader=jinja2.PackageLoader("otbr_jax.report"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


class EmbeddedFigure(NamedTuple):
    """A figure inside a page: `data`, a PNG in base64, and its `width` in pixels of the page."""

    data: str
    width: int


def render(template: str, **values: Any) -> str:
    """The page, or part of one, that a file of `templates/` makes of these values; whatever is text is escaped."""
    return _PAGES.get_template(template).render(values)


def embed(figure: Figure) -> EmbeddedFigure:
    """Draws a figure for a page."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=170, facecolor="white")
    return EmbeddedFigure(base64.b64encode(buffer.getvalue()).decode(), int(figure.get_figwidth() * 92))
