"""The prose of README and of the site: short sentences, and a glossary that can be read at a glance."""

import pathlib
import re
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
sys.path.insert(0, str(DOCS / "ext"))
from words import EVERYDAY, terms  # noqa: E402

LONGEST = 25
"""Words of a sentence."""
PAGES = sorted(
    [
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")),
        *(page for page in DOCS.rglob("*.md") if not {"generated", "_build"} & {*page.parts}),
    ]
)


def paragraphs(text):
    """Running text and items of lists: no code, tables, headings, directives, comments or HTML."""
    text = re.sub(r"<!-- table:.*?<!-- end -->", "", text, flags=re.DOTALL)
    text = re.sub(r"^ *(```+|:::+).*?^ *\1 *$", "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"<[^>\n]+>", "", text)
    kept = [line for line in text.splitlines() if not re.match(r"(    |\||#|!\[)", line)]
    for block in re.split(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.) )", "\n".join(kept)):
        yield re.sub(r"^\s*(?:[-*]|\d+\.) ", "", " ".join(block.split()))


def sentences(text):
    """Sentences as a reader counts them: links are their text, code is one word, brackets belong to their sentence."""
    for paragraph in paragraphs(text):
        words = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", paragraph)
        words = re.sub(r"`[^`]+`", "code", words).replace("*", "")
        yield from re.split(r"(?<=[.!?])\s+|(?<=:)\s+(?=[A-Z])", words)


def words(sentence):
    """How many words: numbers, signs and lists of names count as written."""
    return len([word for word in sentence.split() if re.search(r"\w", word)])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_sentences_are_short(page):
    long = [sentence for sentence in sentences(page.read_text(encoding="utf-8")) if words(sentence) > LONGEST]
    assert not long, "\n".join(f"{words(sentence)} words: {sentence}" for sentence in long)


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120


def test_entries_of_the_glossary_are_short():
    text = (DOCS / "glossary.md").read_text(encoding="utf-8")
    entries = re.findall(r"^- (.*(?:\n  .*)*)", text, re.MULTILINE)
    assert 30 < len(entries) < 60
    for entry in entries:
        assert len([*sentences(entry)]) <= 2, entry
    words_defined = terms(text)
    assert len({*words_defined}) == len(words_defined)
    assert {*words_defined} >= EVERYDAY
