"""How heavy a report is and how long a browser takes to open it.

python -m benchmarks.report runs/of-300-episodes [--browser /usr/bin/chromium]

``report.json``: ``episodes`` and ``plans`` of the run, ``bytes`` of the report, ``seconds_to_write`` and
``seconds_to_open``: from the navigation's start to the end of the load event in a headless Chromium, the median of
``opened`` fresh contexts, with the largest.
"""

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path

from agents.report.page import write_report
from agents.report.run import read_run
from benchmarks.record import write_result
from detectors.errors import InputError

OPENED = 11  # the first warms up
LOADED = "performance.getEntriesByType('navigation')[0].loadEventEnd"


def open_times(file: Path, browser: str) -> list[float]:
    """Seconds of every opening but the first."""
    from playwright.sync_api import sync_playwright

    seconds = []
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox", "--disable-gpu"])
        for _ in range(OPENED):
            context = started.new_context(offline=True)
            page = context.new_page()
            page.goto(file.as_uri())
            page.wait_for_function(f"{LOADED} > 0")
            seconds.append(page.evaluate(LOADED) / 1000)
            context.close()
        started.close()
    return seconds[1:]


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description="Measure a report.")
    parser.add_argument("run", type=Path, help="folder of a finished search")
    parser.add_argument("--dataset", help="where its data lie here")
    parser.add_argument("--browser", default=shutil.which("chromium"), help="a Chromium")
    arguments = parser.parse_args()
    if arguments.browser is None:
        raise InputError("There is no Chromium here: install one, or give --browser.")
    run = read_run(arguments.run)
    with tempfile.TemporaryDirectory() as folder:
        file, started = Path(folder) / "report.html", time.monotonic()
        size = write_report([arguments.run], file, arguments.dataset)
        written = time.monotonic() - started
        seconds = open_times(file, arguments.browser)
    figures = {
        "episodes": run.record["episodes"],
        "plans": len(run.tried),
        "layers": len(run.layers),
        "bytes": size,
        "seconds_to_write": round(written, 1),
        "opened": len(seconds),
        "seconds_to_open": round(statistics.median(seconds), 3),
        "longest": round(max(seconds), 3),
    }
    print(figures)
    print(f"wrote {write_result('report', figures)}")


if __name__ == "__main__":
    main()
