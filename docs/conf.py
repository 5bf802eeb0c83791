"""Sphinx: `pip install '.[docs]'`, then `sphinx-build -W docs build/docs`; needs no network.

Pages of commands, of configs and of the Python interface are written from the package itself at every build.
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import reference  # noqa: E402

from hidecmoe_jax import __version__  # noqa: E402

project = "hidecmoe_jax"
release = __version__
copyright = "the authors of hidecmoe_jax, Apache-2.0"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = f"hidecmoe_jax {__version__}"
exclude_patterns = ["benchmarks", "examples"]
# Links to files of the repository outside docs/ are checked by tests/test_readme.py; headings without a link need none.
suppress_warnings = ["myst.xref_missing", "myst.header"]
myst_heading_anchors = 3
autodoc_typehints = "description"
autodoc_member_order = "bysource"
# Two hyphens begin an option and are no dash.
smartquotes = False


def setup(app) -> None:
    """Writes the generated pages before Sphinx looks for pages."""
    app.connect("config-inited", lambda app, config: reference.write(HERE / "reference"))
