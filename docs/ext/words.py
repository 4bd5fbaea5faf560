"""The words of the glossary, read off its page."""

from __future__ import annotations

import re

EVERYDAY = frozenset(
    "agreement calibration cell evidence flagged gamma given grid group identity lambda neighbours outcome plan "
    "prepare recipe reverted row setup stage step study suspect sweep unchanged unlearning variables verdict "
    "victim".split()
)
"""Terms that are too common for a link of their own accord."""
_ENTRY = re.compile(r"^- \*\*.*", re.MULTILINE)
_WORDS = re.compile(r"\*\*(.+?)\*\*")


def terms(text: str) -> list[str]:
    """The words that a glossary page defines, in its order."""
    return [
        word.strip() for entry in _ENTRY.findall(text) for words in _WORDS.findall(entry) for word in words.split(",")
    ]
