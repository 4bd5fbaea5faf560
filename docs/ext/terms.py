"""Links private words to the glossary, at their first use in a page.

The glossary stays a list that reads well without Sphinx: `- **word**: what it means.` Each bold word becomes a term
that `{term}` knows. In other pages the first use of a term in running text becomes a link, its plural too. Words that
everyday English has as well are linked where a page says so by `{term}`: see `words.EVERYDAY`.
"""

from __future__ import annotations

import pathlib
import re
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from words import EVERYDAY, terms

GLOSSARY = "glossary"
UNLINKED = ("reference/", "generated/", "project/changelog")
"""Pages that are lists of names, not text."""


def _anchor(word: str) -> str:
    return f"term-{nodes.make_id(word)}"


def _define(app: Sphinx, doctree: nodes.document) -> None:
    """Every bold word of the glossary becomes a term, with an anchor."""
    standard = app.env.domains.standard_domain
    for strong in doctree.findall(nodes.strong):
        for word in strong.astext().split(","):
            anchor = _anchor(word.strip())
            strong["ids"].append(anchor)
            standard.note_object("term", word.strip(), anchor, location=strong)


def _pattern(word: str) -> str:
    """The word or its plural; in any case, unless it is an abbreviation."""
    plural = re.escape(word) + "s?"
    return plural if word.isupper() else f"(?i:{plural})"


def _link(app: Sphinx, doctree: nodes.document) -> None:
    """The first use of each term in running text becomes a link."""
    page = app.env.docname
    if page == GLOSSARY:
        _define(app, doctree)
        return
    if page.startswith(UNLINKED) or doctree.get("notebook"):
        return
    words = terms((pathlib.Path(app.srcdir) / f"{GLOSSARY}.md").read_text(encoding="utf-8"))
    waiting = {word.lower(): word for word in words if word not in EVERYDAY}
    longest = sorted(waiting.values(), key=len, reverse=True)
    pattern = re.compile(rf"(?<![\w`/.-])(?:{'|'.join(map(_pattern, longest))})(?![\w/-])")
    for text in [*doctree.findall(nodes.Text)]:
        if _running(text):
            _link_in(text, pattern, waiting)


def _running(text: nodes.Text) -> bool:
    """Whether a text is in a paragraph, and neither code, link nor heading."""
    inside = False
    node: Any = text.parent
    while node is not None:
        if isinstance(node, (nodes.literal, nodes.reference, nodes.title, nodes.literal_block, addnodes.pending_xref)):
            return False
        if isinstance(node, (nodes.table, nodes.raw, nodes.image, addnodes.toctree)):
            return False
        inside = inside or isinstance(node, nodes.paragraph)
        node = node.parent
    return inside


def _link_in(text: nodes.Text, pattern: re.Pattern[str], waiting: dict[str, str]) -> None:
    shown, end, parts = text.astext(), 0, []
    for match in pattern.finditer(shown):
        lower = match[0].lower()
        word = lower if lower in waiting else lower.removesuffix("s")
        if word not in waiting:
            continue
        target = waiting.pop(word)
        parts += [nodes.Text(shown[end : match.start()]), _reference(match[0], target)]
        end = match.end()
    if parts:
        parts.append(nodes.Text(shown[end:]))
        text.parent.replace(text, [part for part in parts if part.astext()])


def _reference(shown: str, word: str) -> addnodes.pending_xref:
    reference = addnodes.pending_xref(
        "", nodes.inline("", shown, classes=["term"]), refdomain="std", reftype="term", reftarget=word, refexplicit=True
    )
    reference["refwarn"] = True
    return reference


def _stale(app: Sphinx, env: BuildEnvironment, *changes: set[str]) -> list[str]:
    """A changed glossary changes every page."""
    return [*env.found_docs] if GLOSSARY in changes[0] | changes[1] else []


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.connect("doctree-read", _link)
    app.connect("env-get-outdated", _stale)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
