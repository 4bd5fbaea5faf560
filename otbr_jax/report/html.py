"""What all HTML pages share: their looks, and figures inside them. A page loads nothing from anywhere."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable

from matplotlib.figure import Figure

_CSS = """
:root { color-scheme: light; --ink: #1f2328; --soft: #57606a; --line: #d8dee4; --good: #0072b2; --bad: #d55e00; }
* { box-sizing: border-box; }
body { margin: 0; color: var(--ink); background: #fff; font: 15px/1.55 system-ui, "Segoe UI", Roboto, sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 2.2rem 1.4rem 4rem; }
h1 { font-size: 1.55rem; margin: 0 0 .3rem; } h2 { font-size: 1.12rem; margin: 2.4rem 0 .4rem; }
p { margin: .4rem 0 .8rem; max-width: 48rem; } .soft, figcaption { color: var(--soft); }
figure { margin: .6rem 0 0; } figcaption { font-size: .88rem; max-width: 48rem; margin-top: .4rem; }
img { max-width: 100%; height: auto; }
.tiles { display: flex; flex-wrap: wrap; gap: 1rem; margin: 1.2rem 0; }
.tile { flex: 1 1 13rem; border: 1px solid var(--line); border-radius: 8px; padding: .8rem 1rem; }
.tile b { display: block; font-size: 1.5rem; font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: .88rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .6rem 0; }
th, td { padding: .32rem .9rem .32rem 0; text-align: right; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; } th { font-weight: 600; color: var(--soft); }
tr.final td { font-weight: 650; } tr.oracle td { color: var(--soft); font-style: italic; }
.notes th, .notes td { white-space: nowrap; }
.notes .note { white-space: normal; text-align: left; color: var(--soft); }
.warn { border-left: 4px solid var(--bad); padding: .4rem .9rem; background: #fff4ec; max-width: 48rem; }
pre { background: #f6f8fa; padding: 1rem; overflow-x: auto; font-size: .8rem; border-radius: 6px; }
.wrap { overflow-x: auto; }
"""


def page(title: str, parts: Iterable[str]) -> str:
    """A page of these pieces of HTML; the title is plain text."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_CSS}</style></head><body><main>{''.join(parts)}</main></body></html>\n"
    )


def embed(figure: Figure, caption: str) -> str:
    """A figure as a picture inside the page, over its caption in HTML."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=170, facecolor="white")
    image = base64.b64encode(buffer.getvalue()).decode()
    width = int(figure.get_figwidth() * 92)
    return (
        f'<figure><img width="{width}" alt="{html.escape(caption)}" src="data:image/png;base64,{image}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )
