"""Coverage: which lines of ``hsq_env`` the tests run, all but those that take minutes.

python -m benchmarks.coverage --workers 2
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.record import write_result

ROOT = Path(__file__).parent.parent


def covered(report: dict[str, Any]) -> dict[str, Any]:
    """The figures of a report of coverage.py, file by file, with the lines that no test runs.

    :param report: its JSON format
    """
    files = {
        name: {**_figures(found["summary"]), "missing": found["missing_lines"]}
        for name, found in sorted(report["files"].items())
    }
    return {"total": _figures(report["totals"]), "files": files}


def _figures(summary: dict[str, Any]) -> dict[str, Any]:
    lines, run = summary["num_statements"], summary["covered_lines"]
    return {"lines": lines, "covered": run, "share": round(run / lines, 4) if lines else 1.0}


def main() -> None:
    """Run the tests and write ``benchmarks/results/coverage.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2, help="tests that run at once")
    arguments = parser.parse_args()
    os.environ.update(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE")
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "coverage.json"
        os.environ["COVERAGE_FILE"] = str(Path(folder) / "coverage")
        pytest = ["-m", "pytest", "-q", "-m", "not long", "-n", str(arguments.workers)]
        subprocess.run(
            [sys.executable, *pytest, "--cov=hsq_env", f"--cov-report=json:{report}", "--cov-report="],
            cwd=ROOT,
            check=True,
        )
        found = covered(json.loads(report.read_text()))
    tools = {name: version(name) for name in ("coverage", "pytest-cov", "pytest")}
    write_result("coverage", {"tools": tools, "tests": 'pytest -m "not long"', **found})
    print(f"{found['total']['share']:.2%} of {found['total']['lines']} lines")


if __name__ == "__main__":
    main()
