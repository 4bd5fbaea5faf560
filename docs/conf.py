"""Sphinx: `python -m sphinx -W -b html docs docs/_build`, with `pip install -e '.[docs]'`."""

from __future__ import annotations

import importlib.metadata
import os

project = "otbr_jax"
author = "the authors of otbr_jax"
release = importlib.metadata.version("otbr_jax")
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.intersphinx",
    "sphinx_copybutton",
]
html_theme = "furo"
html_title = "otbr_jax"
exclude_patterns = ["_build"]
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]
nb_execution_mode = "off"
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
suppress_warnings = ["myst.xref_missing"]  # links to files of the checkout that are no pages
