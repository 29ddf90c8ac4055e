"""Links of the documents, without a network: files and headings exist, addresses have the form of one."""

import importlib
import importlib.util
import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from pages import PAGES, ROOT, name_of, prose_of

LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def slugs(page: Path) -> set[str]:
    """The anchors that code hosts and the site give to a page's headings."""
    found: set[str] = set()
    for heading in re.findall(r"^#{1,6} (.+)$", prose_of(page), re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
        number = 1
        while slug in found:
            slug, number = f"{slug.rsplit('-', 1)[0] if number > 1 else slug}-{number}", number + 1
        found.add(slug)
    return found


def broken(page: Path, link: str) -> bool:
    """Whether a link leads nowhere, as far as this machine can tell."""
    parts = urlsplit(link)
    if parts.scheme:
        return parts.scheme not in ("http", "https") or not re.fullmatch(r"[\w.-]+\.\w+(:\d+)?", parts.netloc)
    target = (page.parent / parts.path).resolve() if parts.path else page
    if not target.exists() or ROOT not in (target, *target.parents):
        return True
    return bool(parts.fragment) and (target.suffix != ".md" or parts.fragment not in slugs(target))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    assert [link for link in LINK.findall(prose_of(page)) if broken(page, link)] == []


def test_broken_links_are_seen() -> None:
    page = ROOT / "docs" / "index.md"
    for link in ("nowhere.md", "tour.md#no-such-heading", "#no-such-heading", "https://", "ftp://a.org", "../../x"):
        assert broken(page, link), link
    for link in ("tour.md", "environment.md#rewards", "commands.md#hsq-search", "https://arxiv.org/abs/2606.15243"):
        assert not broken(page, link), link


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_pages_are_listed(page: Path) -> None:
    """Every page of the site is in its index."""
    index = (ROOT / "docs" / "index.md").read_text()
    if page.is_relative_to(ROOT / "docs") and page.name != "index.md":
        listed = str(page.relative_to(ROOT / "docs").with_suffix(""))
        assert re.search(rf"^{listed}$", index, re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_named_in_the_text_exist(page: Path) -> None:
    folders = "hsq_env|agents|detectors|restorers|benchmarks|tests|examples|docs"
    for name in re.findall(rf"`((?:{folders})/[\w/.]*)`", prose_of(page)):
        assert (ROOT / name).exists() or "_build" in name, name


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_modules_named_in_the_text_exist(page: Path) -> None:
    """``package.module`` or ``package.module.thing``."""
    for name in set(re.findall(r"`((?:hsq_env|agents|detectors|restorers|benchmarks)\.[\w.]+)`", prose_of(page))):
        parts = name.split(".")
        depth = len(parts)
        while not _found(".".join(parts[:depth])):
            depth -= 1
        thing = importlib.import_module(".".join(parts[:depth]))
        for part in parts[depth:]:
            assert hasattr(thing, part), name
            thing = getattr(thing, part)


def _found(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False
