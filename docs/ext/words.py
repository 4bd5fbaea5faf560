"""The words of the glossary, read off its page."""

from __future__ import annotations

import re

EVERYDAY = frozenset(
    "agreement cell defence distilled finetuned fused gamma given grid group identity lambda layer m "
    "neighbours never n outcome patched plan prepare pruned reach recovery remaining row run score setup stage step "
    "study sweep threshold unchanged unlearned variables".split()
)
"""Terms that are too common for a link of their own accord."""
_ENTRY = re.compile(r"^- \*\*.*", re.MULTILINE)
_WORDS = re.compile(r"\*\*(.+?)\*\*")


def terms(text: str) -> list[str]:
    """The words that a glossary page defines, in its order."""
    return [
        word.strip() for entry in _ENTRY.findall(text) for words in _WORDS.findall(entry) for word in words.split(",")
    ]
