"""Sphinx configuration. ``make docs`` builds the site from ``docs/``, and fails on any warning."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "solar_plugins"
author = "the authors of solar_plugins"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_click",
    "sphinx_copybutton",
    "solar_reference",
]
exclude_patterns = ["_ext"]

html_theme = "furo"
html_title = project
html_show_copyright = False
html_static_path = ["_static"]
html_css_files = ["solar.css"]
html_theme_options = {"navigation_with_keys": True}

# --- pages
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
copybutton_prompt_text = "$ "
copybutton_only_copy_prompt_lines = True

# --- docstrings
default_role = "py:obj"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
napoleon_numpy_docstring = False

# Names of other projects, and of our modules other than `solar_plugins.api` and the hooks, are shown without a link.
nitpick_ignore_regex = [(r"py:.*", r"(?!solar_plugins\.(api|plugins\.hookspecs)\.).*")]
