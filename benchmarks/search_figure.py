"""The figure of ``benchmarks/search.py``: test mAP with intervals, and the best divergence against evaluations.

python -m benchmarks.search_figure [--task embedded]
"""

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

from benchmarks.record import RESULTS
from benchmarks.search import TARGETS, lines

mpl.use("agg")
from matplotlib import pyplot as plt

GRID = 200  # points of a curve


def curve_of(rows: list[dict[str, Any]], evaluations: np.ndarray) -> np.ndarray:
    """Mean over seeds of the best divergence after so many evaluations; NaN before the first plan of any seed."""
    curves = []
    for row in rows:
        spent, best = np.array(row["curve"], dtype=float).T
        at = np.searchsorted(spent, evaluations, side="right") - 1
        curves.append(np.where(at >= 0, best[at], np.nan))
    return np.asarray(np.mean(curves, axis=0))


def draw(task: str, figures: dict[str, Any], rows: list[dict[str, Any]], path: Path) -> None:
    """Two rows of panels, a column per target.

    :param figures: of ``search.json`` for the task
    :param rows: its runs
    """
    targets = [t for t in TARGETS if t in figures]
    fig, axes = plt.subplots(2, len(targets), figsize=(4 * len(targets), 8), squeeze=False)
    for column, target in enumerate(targets):
        methods = sorted(figures[target], key=lambda m: figures[target][m]["iqm"])
        centers = np.array([figures[target][m]["iqm"] for m in methods])
        intervals = np.array([figures[target][m]["ci"] for m in methods])
        top = axes[0][column]
        top.errorbar(centers, np.arange(len(methods)), xerr=np.abs(intervals.T - centers), fmt="o", capsize=3)
        top.set_yticks(np.arange(len(methods)), methods)
        top.set_title(f"{task}, target {target}")
        top.set_xlabel("test mAP, interquartile mean and 95 % interval")
        below = axes[1][column]
        for method in methods:
            own = [r for r in rows if r["target"] == target and r["method"] == method]
            evaluations = np.linspace(0, max(r["budget"] for r in own), GRID)
            below.plot(evaluations, curve_of(own, evaluations), label=method)
        below.set_yscale("log")
        below.set_xlabel("student evaluations")
        below.set_ylabel("best divergence on the search images")
        below.legend(fontsize="x-small")
    fig.tight_layout()
    fig.savefig(path, dpi=120)
    plt.close(fig)


def main() -> None:
    """Draw."""
    parser = argparse.ArgumentParser(description="Draw the comparison of searches.")
    parser.add_argument("--task", default="embedded")
    arguments = parser.parse_args()
    figures = json.loads((RESULTS / "search.json").read_text())[arguments.task]
    path = RESULTS / f"search_{arguments.task}.png"
    draw(arguments.task, figures, [r for r in lines() if r["task"] == arguments.task], path)
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
