"""How the pages are built: `make docs`."""

from skdtheano.version import VERSION

project = "skdtheano"
copyright = "the authors of skdtheano"
version = release = VERSION
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
]
exclude_patterns = ["_build"]
myst_heading_anchors = 3
napoleon_google_docstring = False
autosummary_generate = False
autodoc_typehints = "none"  # the docstrings say more: shapes, dtypes, units
html_theme = "alabaster"
html_theme_options = {"page_width": "64em", "nosidebar": False}
