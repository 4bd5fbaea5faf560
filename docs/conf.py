"""Sphinx: `python -m sphinx -W -b html docs docs/_build/html`, with `pip install -e '.[docs]'`.

OFFLINE=1 leaves out the links to other projects. NOTEBOOKS=1 runs the notebooks, so that their pages show what they
print and draw. REPOSITORY=OWNER/NAME adds the links that open them in Colab.
"""

from __future__ import annotations

import importlib.metadata
import os
import pathlib
import posixpath
import re
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "ext"))
# The notebooks, too, find `configs` and `launch` there.
os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
subprocess.run([sys.executable, str(HERE / "ext" / "generate.py"), str(HERE / "generated")], check=True)

project = "otbr_jax"
author = "the authors of otbr_jax"
release = importlib.metadata.version("otbr_jax")
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.intersphinx",
    "sphinx_copybutton",
    "terms",
    "every_name",
]
html_theme = "furo"
html_title = "otbr_jax"
html_show_copyright = False
html_static_path = ["static"]
html_css_files = ["wide.css"]
exclude_patterns = ["_build", "ext"]
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]
nb_execution_mode = "force" if os.environ.get("NOTEBOOKS") else "off"
nb_execution_timeout = 900
nb_execution_raise_on_error = True
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # docstrings say shapes, which types do not
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
default_role = "code"  # single backquotes in docstrings are code
LINKED = {
    "python": ("https://docs.python.org/3", None),
    "jax": ("https://docs.jax.dev/en/latest", None),
    "flax": ("https://flax.readthedocs.io/en/stable", None),
    "optax": ("https://optax.readthedocs.io/en/latest", None),
    "ott": ("https://ott-jax.readthedocs.io/en/latest", None),
}
# Without a network there is nothing to link to.
intersphinx_mapping = {} if os.environ.get("OFFLINE") else LINKED
intersphinx_timeout = 10

PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contribute/contributing.md",
    "CHANGELOG.md": "project/changelog.md",
    "CITATION.cff": "project/citation.md",
    "SECURITY.md": "project/security.md",
}
"""Files of the checkout that are pages of the site."""
_LINK = re.compile(r"(\]\()(?!https?:|#)([^)#\s]+)")


def _linked(target: str, page: str) -> str:
    """A link as the site has it: files of the checkout that are pages of the site lead to these."""
    path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), target))
    if path in PAGES:
        path = f"docs/{PAGES[path]}"
    elif path.startswith("colabs/"):
        path = f"docs/generated/{path}"
    else:
        return target
    return posixpath.relpath(path, posixpath.join("docs", posixpath.dirname(page)))


def _on_the_site(app, page, source):
    """Links that are right in the checkout become right on the site."""
    if page.startswith("generated/colabs/"):
        source[0] = _with_badge(source[0], page)
    else:
        source[0] = _LINK.sub(lambda match: match[1] + _linked(match[2], page), source[0])


def _with_badge(text: str, page: str) -> str:
    """A notebook with a link that opens it in Colab below its title, where the repository is known."""
    repository = os.environ.get("REPOSITORY") or os.environ.get("GITHUB_REPOSITORY")
    if not repository:
        return text
    name = page.rpartition("/")[2]
    link = f"[Open in Colab](https://colab.research.google.com/github/{repository}/blob/main/colabs/{name}.ipynb)"
    return re.sub(r'("# [^"\\]+)(\\n")', rf"\1\\n\\n{link}\2", text, count=1)


def _without_places(app, kind, name, value, skip, options):
    """Leaves out the fields of named tuples, of which Python says "Alias for field number 0"; their class says more."""
    return True if type(value).__name__ == "_tuplegetter" else None


def setup(app):
    """Called by Sphinx."""
    app.connect("autodoc-skip-member", _without_places)
    app.connect("source-read", _on_the_site)
