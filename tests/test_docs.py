"""The site: every module has a place in the reference, every page a place in the table of contents."""

import os
import pathlib
import pkgutil
import re
import subprocess
import sys

import pytest

import otbr_jax
from otbr_jax.attacks.registry import ATTACKS
from otbr_jax.defenses.registry import DEFENSES
from otbr_jax.detectors.registry import DETECTORS
from otbr_jax.settings import all_names, describe_all
from otbr_jax.studies.repair_config import RepairConfig
from otbr_jax.triggers import FAMILIES

DOCS = pathlib.Path(__file__).resolve().parent.parent / "docs"
PAGES = [page for page in DOCS.rglob("*.md") if not {"generated", "_build"} & {*page.relative_to(DOCS).parts}]
NOTEBOOKS = {f"generated/colabs/{path.stem}" for path in (DOCS.parent / "colabs").glob("*.ipynb")}


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


def listed(generated):
    """The pages of the tables of contents, as Sphinx reads them: a pattern takes what is not listed before it."""
    pages = [str(page.relative_to(DOCS).with_suffix("")) for page in PAGES]
    pages += [f"generated/{page.relative_to(generated).with_suffix('')}" for page in generated.rglob("*.[mi][dp]*")]
    pages_in_order = []
    for directive in re.findall(r"^```{toctree}\n(.*?)^```", (DOCS / "index.md").read_text(), re.DOTALL | re.MULTILINE):
        waiting = sorted(pages)
        for entry in re.findall(r"^\w\S*$", directive, re.MULTILINE):
            matching = [page for page in waiting if re.fullmatch(entry.replace("*", "[^/]*"), page)]
            assert matching, f"{entry}: no such page"
            pages_in_order += matching
            waiting = [page for page in waiting if page not in matching]
    return pages_in_order


def test_every_page_is_in_one_table_of_contents(generated):
    pages = {str(page.relative_to(DOCS).with_suffix("")) for page in PAGES} - {"index"}
    contents = listed(generated)
    assert {*contents} >= pages
    assert {page for page in contents if page.startswith("generated/colabs/")} == NOTEBOOKS
    assert len({*contents}) == len(contents)


def test_every_module_and_every_public_name_has_a_place_in_the_reference(generated):
    pages = {page: page.read_text() for page in (generated / "reference").glob("*.md")}
    named = [name for text in pages.values() for name in re.findall(r"automodule:: (\S+)", text)]
    modules = [module.name for module in pkgutil.walk_packages(otbr_jax.__path__, "otbr_jax.") if not module.ispkg]
    assert sorted(named) == sorted(modules)
    public = pages[generated / "reference" / "public_names.md"]
    assert {*otbr_jax.__all__} == {*re.findall(r"^\| (?:`|{py:obj}`)(\w+)", public, re.MULTILINE)}
    by_name = pages[generated / "reference" / "by_name.md"]
    for name in (*DEFENSES, *DETECTORS, *ATTACKS, *FAMILIES):
        assert f"`{name}`" in by_name or f"`{name} <" in by_name
    undocumented = "import reference; print(*reference.undocumented())"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(DOCS.parent), str(DOCS / "ext")])}
    done = subprocess.run([sys.executable, "-c", undocumented], env=environment, check=True, capture_output=True)
    assert done.stdout.split() == []


def test_a_new_defence_needs_no_page_and_no_line_of_the_docs(tmp_path):
    text = (DOCS.parent / "otbr_jax" / "defenses" / "ft.py").read_text().replace('name="ft"', 'name="gentle"')
    (tmp_path / "gentle.py").write_text(text)
    asked = f"""
import otbr_jax.defenses, reference
otbr_jax.defenses.__path__.append({str(tmp_path)!r})
pages = reference.pages()
assert "automodule:: otbr_jax.defenses.gentle" in pages["defenses"]
assert "`gentle <otbr_jax.defenses.gentle>`" in pages["by_name"]
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(DOCS.parent), str(DOCS / "ext")])}
    subprocess.run([sys.executable, "-c", asked], env=environment, check=True)


def test_every_program_and_its_flags_are_on_a_page(generated):
    page = (generated / "reference" / "commands.md").read_text()
    programs = {path.stem for path in (DOCS.parent / "launch").glob("*.py") if "__main__" in path.read_text()}
    assert {*re.findall(r"^## launch\.(\w+)$", page, re.MULTILINE)} == programs
    assert "| `--workdir` | `runs/repair` | Directory for stages and results; resumed if used before. |" in page
    assert "| `--config` | `configs/disarm.py` |" in page


def test_every_setting_is_on_a_page(generated):
    page = (generated / "reference" / "settings.md").read_text()
    assert {*re.findall(r"^### The defence (\w+)$", page, re.MULTILINE)} == {*DEFENSES}
    named = {*re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)}
    declared = {name.rpartition(".")[2] for name in all_names(describe_all(RepairConfig))}
    assert declared - {"defense"} <= named
    anchors = {*re.findall(r"^\((\S+)\)=$", page, re.MULTILINE)}
    assert {*re.findall(r"\]\(#([^)]+)\)", page)} <= anchors
    commands = (generated / "reference" / "commands.md").read_text()
    assert {*re.findall(r"\]\(settings\.md#([^)]+)\)", commands)} <= anchors


def test_every_notebook_is_a_page_and_installs_itself_in_colab(generated):
    import nbformat

    for path in (generated / "colabs").glob("*.ipynb"):
        title, install = nbformat.read(path, as_version=4).cells[:2]
        assert title.source.startswith("# ")
        assert 'if "google.colab" in sys.modules' in install.source
        assert "%pip install" in install.source
