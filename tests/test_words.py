"""The field's words: none of the words that this project used to have for them is left.

Each scope is a kind of text. `SWEPT` names those that are clean; the others are written down and wait for their sweep.
What may keep an old word: rows of `results/`, `formerly=` names and `key=` names of stages, the changelog's history.
"""

import ast
import io
import pathlib
import re
import tokenize

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent

SWEPT = (
    "pages",
    "pages with code",
    "notebooks",
    "texts of the library",
    "templates",
    "code of the library",
    "names of the library",
    "tests and benchmarks",
)
"""The scopes that are free of old words: extend it as they are swept."""

PHRASES = {
    r"short cuts?": "minimal trigger; the detector is `trigger_size`",
    r"reach costs?|costs? of reaching": "minimal trigger size",
    r"out of line": "an outlier, anomalous",
    r"(?:stands?|stood|standing) out(?! of the way)": "is flagged; has a high anomaly score",
    r"accus(?:e[sd]?|ing|ations?)": "flag; a false alarm",
    r"guilty|judg(?:e[sd]?|ing|e?ments?)": "flagged; a verdict, a detector",
    r"left alone": "returned unchanged",
    r"lessons?": "unlearning round, unlearning",
    r"(?:un)?(?:teach(?:es|ing)?|taught)": "unlearn; train; distil (a `teacher` stays)",
    r"undone": "reverted",
    r"harden(?:s|ed|ing)?": "fine-tuning on inverted triggers",
    r"patching|patched": "fine-tuning on inverted triggers",
    r"recover(?:y|ies)": "relearning the class",
    r"(?:comes?|came|coming) back(?! under)": "relearning; is relearned",
    r"reverse.engineer(?:s|ed|ing)?": "trigger inversion; inverted",
    r"strongest(?! harmless)": "a trigger of a fixed size",
    r"(?:procedural|made.up|plain) pictures?": "procedural images",
    r"(?:what|as) (?:the|a) network answers|own answers": "predictions",
    r"is (?:rarely |often |never )?the answer": "is predicted; class bias",
    r"answered (?:with|as|right|correctly|otherwise)": "predicted as",
    r"as usual": "default numerics; by default",
    r"reached pictures": "success rate",
}
"""Regular expressions over text in which identifiers are split into words, and what to say instead."""

IN_PAGES = PHRASES | {
    r"pictures?": "image; figure",
    r"suspicions?": "anomaly score",
    r"short.cut": "minimal trigger",
}
"""The same for pages, which speak to people alone."""

NAMES = {
    "ahead": "estimate",
    "answers": "predictions",
    "as_usual": "default_numerics",
    "Bank": "FamilySwitch",
    "brought": "user_network",
    "comes_back": "relearning",
    "familiar": "check_data",
    "foreign": "unpickle",
    "identify": "infer_model",
    "margins": "maximum margins",
    "moments": "opt_state",
    "moved": "grads, updates",
    "named": "infer_model",
    "other_kinds": "diagnose",
    "parts": "reparametrised",
    "passing": "flops",
    "Pictures": "ProceduralImages",
    "PicturesConfig": "ImagesConfig",
    "reach": "invert, success_rate",
    "ReachConfig": "InversionConfig",
    "settled": "rounded",
    "sharing": "collectives",
    "Suspicion": "Verdict",
    "told": "infer_model",
}
"""Names of modules, functions, classes, fields and arguments, and what they are called now."""

KEPT = re.compile(
    r"adaptive_(?:pictures|reach)"  # attacks, by which rows and victims are known
    r"|formerly=\(?(?:\s*\"[^\"]*\",?)+\)?|formerly=\{[^}]*\}"
    r"|--config\.(?:reach|teaching)\.\w+|--judge\b"  # old flags, which are answered with their current names
    r"|key=\"[^\"]*\""
    r"|\.key\(\"[^\"]*\"\)"
    r"|bench_\w+|results/\w+\.jsonl"
)
"""What may keep its name."""


def spoken(text):
    """Text with identifiers as words: `ShortCuts` and `short_cuts` become `Short Cuts` and `short cuts`."""
    text = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", KEPT.sub(" ", text))
    return re.sub(r"[\s_-]+", " ", text)


def old_words(text, phrases):
    """`[(what stands there, what to say)]`."""
    said = spoken(text)
    return [
        (f"... {said[max(0, found.start() - 30) : found.end() + 30]} ...", instead)
        for phrase, instead in phrases.items()
        for found in re.finditer(rf"(?i)(?<!\w)(?:{phrase})(?!\w)", said)
    ]


def markdown(folder="docs"):
    pages = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")]
    return [*pages, *(page for page in (ROOT / folder).rglob("*.md") if not {"generated", "_build"} & {*page.parts})]


def python(*folders):
    """Files of Python, but those about rows of earlier versions."""
    return [path for folder in folders for path in (ROOT / folder).rglob("*.py") if "former_rows" not in path.name]


def prose(text):
    """A page without what the code makes or is: tables of rows, code, targets of links, comments."""
    text = re.sub(r"<!-- table:.*?<!-- end -->", "", text, flags=re.DOTALL)
    text = re.sub(r"^ *(```+|:::+).*?^ *\1 *$", "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"^    .*$", "", text, flags=re.MULTILINE)
    return re.sub(r"\]\([^)\s]*\)|`[^`\n]+`|<[^>\n]+>", "", text)


def strings_and_comments(text):
    """What people read of Python: docstrings, messages, help texts, comments."""
    kinds = {tokenize.STRING, tokenize.COMMENT, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
    lines = io.StringIO(KEPT.sub(" ", text)).readline
    return "\n".join(token.string for token in tokenize.generate_tokens(lines) if token.type in kinds)


def names(path):
    """What a Python file defines: itself, functions, classes, arguments, fields."""
    yield path.stem
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name
        if isinstance(node, ast.arg):
            yield node.arg
        if isinstance(node, ast.ClassDef):
            yield from (one.target.id for one in node.body if isinstance(one, ast.AnnAssign))


def found_in(paths, read, phrases):
    return {
        f"{path.relative_to(ROOT)}: {there}": instead
        for path in paths
        for there, instead in old_words(read(path.read_text(encoding="utf-8")), phrases)
    }


def names_in(paths):
    return {f"{path.relative_to(ROOT)}: {name}": NAMES[name] for path in paths for name in names(path) if name in NAMES}


LIBRARY = ("otbr_jax", "launch", "configs")

SCOPES = {
    # The text of README and of the site.
    "pages": lambda: found_in(markdown(), prose, IN_PAGES),
    # The same with its code, commands, printed lines, and tables that are made of rows.
    "pages with code": lambda: found_in(markdown(), str, PHRASES),
    "notebooks": lambda: found_in([*(ROOT / "colabs").glob("*.ipynb")], str, PHRASES),
    # Docstrings, messages, help texts, comments; the templates of the report.
    "texts of the library": lambda: found_in(python(*LIBRARY), strings_and_comments, PHRASES),
    "templates": lambda: found_in([*(ROOT / "otbr_jax").rglob("*.html")], str, PHRASES),
    # All of its code.
    "code of the library": lambda: found_in(python(*LIBRARY), str, PHRASES),
    "names of the library": lambda: names_in(python(*LIBRARY)),
    "tests and benchmarks": lambda: found_in(
        [path for path in python("tests", "benchmarks") if path != pathlib.Path(__file__).resolve()], str, PHRASES
    ),
}


@pytest.mark.parametrize("scope", SWEPT)
def test_no_old_word_is_left(scope):
    found = SCOPES[scope]()
    assert not found, f"{len(found)} old words:\n" + "\n".join(f"{at}: say {instead}" for at, instead in found.items())


def test_old_words_are_found_and_ordinary_english_is_not():
    for text in (
        "ShortCuts",
        "short_cuts",
        "--config.detection.short_cuts",
        "a class stands out",
        "Lessons end",
        "it was taught",
    ):
        assert old_words(text, PHRASES), text
    for text in ("the shortcut of a block", "a teacher", "reaches the threshold", "cut short", 'formerly="short_cuts"'):
        assert not old_words(text, PHRASES), text
    assert old_words("in the picture", IN_PAGES)
    assert not old_words("adaptive_pictures", IN_PAGES)


def test_every_scope_has_texts_to_read():
    assert {*SWEPT} <= {*SCOPES}
    assert len(markdown()) > 50
    assert len(python(*LIBRARY)) > 200
