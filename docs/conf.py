"""Settings of the documentation: ``make docs`` builds it into ``docs/_build/html``."""

import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]  # generated.py, and the packages that are documented

import generated  # noqa: E402

import hsq_env  # noqa: E402

project = "HSQ"
author = "The HSQ authors"
project_copyright = author
version = release = hsq_env.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
nitpicky = True
# Libraries whose names stand in signatures are not linked: building needs no network.
nitpick_ignore_regex = [("py:.*", generated.FOREIGN), ("py:class", r".*\.Item")]  # the latter a type variable

myst_enable_extensions = ["deflist", "fieldlist"]
smartquotes = False  # what is quoted may be typed
myst_heading_anchors = 3  # "#some-heading", as code hosts make them

html_theme = "furo"
html_title = "HSQ"
html_static_path: list[str] = []
html_copy_source = False
html_show_sphinx = False

default_role = "code"  # docstrings quote names with one or two backticks
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
maximum_signature_line_length = 100


def setup(app: Any) -> None:
    """Pages may ask for text that is made from the code."""
    app.connect("source-read", expand_page)
    app.connect("autodoc-process-docstring", generated.shorten_markdown)


def expand_page(app: Any, name: str, source: list[str]) -> None:
    """Put what is generated into a page."""
    source[0] = generated.expand(source[0])
