"""The page of a report, in a browser where there is one."""

import errno
import json
import re
import shutil
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from report_runs import write_run

import agents.report.page
from agents.cli import main
from agents.report.page import differing, page, summary, write_report
from agents.report.run import read_run
from detectors.errors import InputError

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium."""
    if BROWSER is None:
        pytest.skip("no Chromium on this machine")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=BROWSER, args=QUIET)
        yield started
        started.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of two runs."""
    folder = tmp_path_factory.mktemp("report")
    runs = [write_run(folder / "one"), write_run(folder / "two")]
    write_report(runs, folder / "report.html", images=0)
    assert (folder / "report.html").stat().st_size < 1_000_000
    return folder / "report.html"


def opened(browser: Any, file: Path, width: int, **settings: Any) -> tuple[Any, list[str]]:
    """A page, and what went wrong on it."""
    wrong: list[str] = []
    context = browser.new_context(viewport={"width": width, "height": 900}, offline=True, **settings)
    shown = context.new_page()
    shown.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    shown.on("pageerror", lambda error: wrong.append(str(error)))
    shown.on("requestfailed", lambda request: wrong.append(request.url))
    shown.goto(file.as_uri())
    return shown, wrong


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_figure_is_drawn_and_nothing_goes_wrong(width: int, scheme: str, browser: Any, report: Path) -> None:
    shown, wrong = opened(browser, report, width, color_scheme=scheme)
    drawings = shown.locator("svg.drawing")
    sizes = [drawings.nth(i).bounding_box() for i in range(drawings.count()) if drawings.nth(i).is_visible()]
    assert len(sizes) == 4 + 3 + 2  # size and rewards, curves, layers of each run
    assert all(size["width"] > 200 and size["height"] > 100 for size in sizes)
    assert shown.evaluate("document.documentElement.scrollWidth") == width  # only figures and tables scroll
    paper, ink = (shown.evaluate(f"getComputedStyle(document.body).{name}") for name in ("backgroundColor", "color"))
    assert paper == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(22, 24, 26)")
    label = drawings.first.locator("text").first.evaluate("element => getComputedStyle(element).fill")
    assert label == ink  # drawings follow light and dark
    assert wrong == []


def test_marks_speak_under_the_mouse(browser: Any, report: Path) -> None:
    shown, wrong = opened(browser, report, 1280)
    tip = shown.locator("#tip")
    assert not tip.is_visible()
    mark = shown.locator("figure.wide [data-row]").first
    mark.hover(force=True)
    assert tip.is_visible() and tip.inner_text().startswith("stem. 8 bits, no zeros: 400 of 1,600 bytes")
    shown.keyboard.press("Escape")
    assert not tip.is_visible()
    dot = shown.locator("[data-tip^='one: uniform 4']")
    dot.hover(force=True)
    assert tip.is_visible() and "uniform 4 bit: mAP 0.6000" in tip.inner_text()
    shown.locator("h1").hover()
    assert not tip.is_visible()
    assert wrong == []


@pytest.mark.parametrize("width", [390, 1280])
def test_marks_speak_by_the_arrow_keys(width: int, browser: Any, report: Path) -> None:
    shown, wrong = opened(browser, report, width)
    figure = shown.locator("figure.wide").first
    figure.focus()
    tip = shown.locator("#tip")
    layers = ["stem", "body", "head"]  # once, whatever number of marks a layer has
    for key, at in (("ArrowRight", 0), ("ArrowRight", 1), ("ArrowLeft", 0), ("End", 2), ("ArrowDown", 2), ("Home", 0)):
        shown.keyboard.press(key)
        assert tip.is_visible() and tip.inner_text().startswith(layers[at] + ". ")
        assert shown.locator("#said").inner_text() == tip.inner_text()
        box = tip.bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= width
    shown.keyboard.press("Escape")
    assert not tip.is_visible()
    assert wrong == []


def test_other_keys_stay_the_browsers(browser: Any, report: Path) -> None:
    shown, _ = opened(browser, report, 1280)
    shown.evaluate("document.addEventListener('keydown', event => { window.last = event.defaultPrevented; })")
    shown.locator("figure.wide").first.focus()
    for key, ours in (("ArrowRight", True), ("Alt+ArrowRight", False), ("Control+End", False), ("PageDown", False)):
        shown.keyboard.press(key)
        assert shown.evaluate("window.last") is ours
    without = shown.locator("figure[aria-label*='Exploration rate']")
    assert without.get_attribute("tabindex") is None and "Arrow" not in without.get_attribute("aria-label")


def test_the_tab_key_comes_by_every_figure(browser: Any, report: Path) -> None:
    shown, _ = opened(browser, report, 1280)
    figures = shown.locator("figure[tabindex='0']:visible")
    labels = [figures.nth(i).get_attribute("aria-label") for i in range(figures.count())]
    assert len(set(labels)) == len(labels) == 6
    met = []
    for _ in range(60):
        shown.keyboard.press("Tab")
        met.append(shown.evaluate("document.activeElement.getAttribute('aria-label')"))
    assert [label for label in met if label in labels][: len(labels)] == labels


def luminance(color: str) -> float:
    """Relative, as WCAG 2 defines it.

    :param color: "#rrggbb"
    """
    shares = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_marks_and_words_stand_out() -> None:
    css = files("agents.report").joinpath("page.css").read_text()
    schemes = [dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", part)) for part in css.split("@media")[:2]]
    for scheme in schemes:
        ground = luminance(scheme["panel"])
        for name, color in scheme.items():
            if name.startswith("series"):
                shares = [
                    round(0.9 * int(color[i : i + 2], 16) + 0.1 * int(scheme["panel"][i : i + 2], 16))
                    for i in (1, 3, 5)
                ]
                color = "#" + "".join(f"{share:02x}" for share in shares)  # as points are drawn
            needed = {"ink": 7.0, "muted": 4.5}.get(name, 3.0 if name.startswith("series") else 0.0)
            light, dark = sorted((luminance(color), ground), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= needed, (name, color)


def test_paper_shows_what_is_folded(browser: Any, report: Path) -> None:
    shown, _ = opened(browser, report, 1280)
    folded = "document.querySelectorAll('details:not([open])').length"
    assert shown.evaluate(folded) > 0
    shown.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert shown.evaluate(folded) == 0
    shown.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert shown.evaluate(folded) > 0
    shown.emulate_media(media="print")
    assert shown.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def test_the_file_needs_nothing_else(report: Path) -> None:
    text = report.read_text()
    assert 'src="http' not in text and '<link rel="stylesheet"' not in text and "@import" not in text
    assert "https://" not in text
    assert "hsq search --out &#39;a &lt;run&gt;&#39;" in text  # what people typed is text
    assert "accuracy is short" in text  # the self-evaluation's reason


def test_what_a_run_came_to(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "one"))
    assert summary(run) == "one: 10.00 times smaller (2,400 bytes) at 2.00 points lost."
    bare = read_run(write_run(tmp_path / "two", layers=None, diagnostics=None, environment=None, history=[]))
    text = page([bare])
    assert "its record does not hold what was known of its layers" in text


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, out = write_run(tmp_path / "one"), tmp_path / "a.html"
    main(["report", str(run), "--out", str(out), "--json"])
    said = json.loads(capsys.readouterr().out)
    assert said == {"report": str(out), "bytes": out.stat().st_size, "runs": [str(run)]}
    assert "There are no images to see: The record does not say where its data are" in out.read_text()


def test_other_files_are_not_overwritten(tmp_path: Path) -> None:
    run = write_run(tmp_path / "one")
    before = (run / "result.json").read_bytes()
    with pytest.raises(InputError, match=r"result\.json exists and is no report"):
        write_report([run], run / "result.json", images=0)
    assert (run / "result.json").read_bytes() == before
    out = tmp_path / "a.html"
    assert write_report([run], out, images=0) == write_report([run], out, images=0) == out.stat().st_size


def test_a_full_disk_leaves_no_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    run = write_run(tmp_path / "one")
    monkeypatch.setattr(agents.report.page, "write_atomically", full)
    with pytest.raises(InputError, match="cannot be written \\(No space left on device\\)"):
        write_report([run], tmp_path / "a.html", images=0)


def test_runs_that_differ_are_not_compared_without_a_word(tmp_path: Path) -> None:
    one, two = read_run(write_run(tmp_path / "one")), read_run(write_run(tmp_path / "two", dataset="other"))
    assert differing([one, one]) == [] and differing([one, two]) == ["data"]
    assert "These runs differ in their data" in page([one, two])


def test_bad_input_writes_nothing(tmp_path: Path) -> None:
    one, other = write_run(tmp_path / "one"), write_run(tmp_path / "two", metric="PSNR")
    out = tmp_path / "a.html"
    record = json.loads((other / "result.json").read_text())
    for row in (record["teacher"], *record["methods"].values()):
        row["psnr"] = row["map"]
    (other / "result.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match="different metrics \\(PSNR and mAP\\)"):
        write_report([one, other], out, images=0)
    with pytest.raises(InputError, match="give folders of finished runs"):
        write_report([], out)
    with pytest.raises(InputError, match="--shown 1 or more"):
        write_report([one], out, shown=0)
    with pytest.raises(InputError, match="give a file in a folder that exists"):
        write_report([one], tmp_path / "absent" / "a.html")
    with pytest.raises(InputError, match="give a file in a folder that exists"):
        write_report([one], tmp_path)
    assert not out.exists()
