"""The site: every module has a place in the reference, every page a place in the table of contents."""

import os
import pathlib
import pkgutil
import re
import subprocess
import sys

import pytest

import otbr_jax
from otbr_jax.defenses.registry import DEFENSES
from otbr_jax.settings import all_names
from otbr_jax.studies.repair_config import RepairConfig

DOCS = pathlib.Path(__file__).resolve().parent.parent / "docs"
PAGES = [page for page in DOCS.rglob("*.md") if not {"generated", "_build"} & {*page.relative_to(DOCS).parts}]
NOTEBOOKS = {f"generated/colabs/{path.stem}" for path in (DOCS.parent / "colabs").glob("*.ipynb")}


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
    pages = {str(page.relative_to(DOCS).with_suffix("")) for page in PAGES} - {"index"}
    listed = re.findall(r"^[a-z_]+(?:/[a-z_]+)*$", index, re.MULTILINE)
    assert {*listed} == pages | NOTEBOOKS
    assert len({*listed}) == len(listed)


def test_links_between_pages_lead_somewhere():
    for page in (*PAGES, *DOCS.parent.glob("*.md")):
        for target in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page}: {target}"


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    """The folder of what `docs/ext/generate.py` writes."""
    folder = tmp_path_factory.mktemp("generated")
    environment = os.environ | {"PYTHONPATH": str(DOCS.parent)}
    subprocess.run([sys.executable, DOCS / "ext" / "generate.py", folder], check=True, env=environment)
    return folder


def test_every_program_and_its_flags_are_on_a_page(generated):
    page = (generated / "commands.md").read_text()
    programs = {path.stem for path in (DOCS.parent / "launch").glob("*.py") if "__main__" in path.read_text()}
    assert {*re.findall(r"^## launch\.(\w+)$", page, re.MULTILINE)} == programs
    assert "| `--workdir` | `runs/repair` | Directory for stages and results; a run is resumed there. |" in page
    assert "| `--config` | `configs/disarm.py` |" in page


def test_every_setting_is_on_a_page(generated):
    page = (generated / "settings.md").read_text()
    assert {*re.findall(r"^### The defence (\w+)$", page, re.MULTILINE)} == {*DEFENSES}
    named = {*re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)}
    declared = {name.rpartition(".")[2] for name in all_names(RepairConfig)}
    assert declared - {"defense"} <= named
    anchors = {*re.findall(r"^\((\S+)\)=$", page, re.MULTILINE)}
    assert {*re.findall(r"\]\(#([^)]+)\)", page)} <= anchors
    commands = (generated / "commands.md").read_text()
    assert {*re.findall(r"\]\(settings\.md#([^)]+)\)", commands)} <= anchors


def test_every_notebook_is_a_page_and_installs_itself_in_colab(generated):
    import nbformat

    for path in (generated / "colabs").glob("*.ipynb"):
        title, install = nbformat.read(path, as_version=4).cells[:2]
        assert title.source.startswith("# ")
        assert 'if "google.colab" in sys.modules' in install.source
        assert "%pip install" in install.source
