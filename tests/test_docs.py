"""The site: every module has a place in the reference, every page a place in the table of contents."""

import pathlib
import pkgutil
import re

import otbr_jax

DOCS = pathlib.Path(__file__).resolve().parent.parent / "docs"


def test_every_module_has_a_place_in_the_reference():
    named = {
        name
        for page in (DOCS / "reference").glob("*.md")
        for name in re.findall(r"automodule:: (\S+)", page.read_text())
    }
    modules = {module.name for module in pkgutil.walk_packages(otbr_jax.__path__, "otbr_jax.") if not module.ispkg}
    assert named == modules


def test_every_page_is_in_the_table_of_contents():
    index = (DOCS / "index.md").read_text()
    pages = {str(page.relative_to(DOCS).with_suffix("")) for page in DOCS.rglob("*.md")} - {"index"}
    assert {line for line in index.splitlines() if line in pages} == pages


def test_links_between_pages_lead_somewhere():
    for page in (*DOCS.rglob("*.md"), DOCS.parent / "README.md"):
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page}: {target}"
