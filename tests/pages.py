"""The documentation as tests read it: its pages, with what is made from the code put in."""

import re
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))
FENCE = re.compile(r"^```(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

if str(ROOT / "docs") not in sys.path:
    sys.path.append(str(ROOT / "docs"))  # generated.py, as docs/conf.py finds it


def name_of(page: Path) -> str:
    """A page's path in the repository."""
    return str(page.relative_to(ROOT))


@cache
def text_of(page: Path) -> str:
    """A page as the site shows it."""
    from generated import expand

    return expand(page.read_text())


def blocks_of(page: Path, language: str) -> list[str]:
    """The page's code in a language."""
    return [code for kind, code in FENCE.findall(text_of(page)) if kind == language]


def prose_of(page: Path) -> str:
    """A page without its blocks of code."""
    return FENCE.sub("", text_of(page))
