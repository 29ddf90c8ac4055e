"""The figure of ``benchmarks/search.py``: points lost with intervals, and the best divergence against evaluations.

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
FAR = 0.3  # points of mAP above the median method that are too many for one axis
AGENT = "dqn"
COLORS = {  # told apart by eyes of all kinds (Okabe and Ito)
    AGENT: "#0072B2",
    "ilp": "#E69F00",
    "ilp_repaired": "#009E73",
    "ilp_loads": "#D55E00",
    "local": "#CC79A7",
    "greedy": "#56B4E9",
}


def curve_of(rows: list[dict[str, Any]], evaluations: np.ndarray) -> np.ndarray:
    """Mean over seeds of the best divergence after so many evaluations; NaN before the first plan of any seed."""
    curves = []
    for row in rows:
        spent, best = np.array(row["curve"], dtype=float).T
        at = np.searchsorted(spent, evaluations, side="right") - 1
        curves.append(np.where(at >= 0, best[at], np.nan))
    return np.asarray(np.mean(curves, axis=0))


def far_off(lost: dict[str, float]) -> dict[str, float]:
    """Methods that lose so much that the others would fall together on the same axis, the best of them first."""
    usual = float(np.median(list(lost.values())))
    limit = usual + max(FAR, abs(usual))
    return {method: points for method, points in sorted(lost.items(), key=lambda item: item[1]) if points > limit}


def draw(task: str, figures: dict[str, Any], rows: list[dict[str, Any]], path: Path) -> None:
    """Two rows of panels, a column per target; methods that are far off are written, not drawn.

    :param figures: of ``search.json`` for the task
    :param rows: its runs
    """
    targets = [t for t in TARGETS if t in figures]
    fig, axes = plt.subplots(2, len(targets), figsize=(4.6 * len(targets), 9), squeeze=False)
    for column, target in enumerate(targets):
        lost = {method: own["points_lost"] for method, own in figures[target].items()}
        far = far_off(lost)
        methods = sorted((m for m in lost if m not in far), key=lambda m: -lost[m])
        _draw_losses(axes[0][column], figures[target], methods)
        written = [f"{method} {points:.1f}" for method, points in far.items()]
        title = f"{task}, {target}" + ("x" if target[0].isdigit() else "")
        axes[0][column].set_title(title + (f"\noff the chart: {', '.join(written)}" if written else ""), fontsize=9)
        _draw_curves(axes[1][column], [r for r in rows if r["target"] == target], methods)
    fig.tight_layout()
    fig.savefig(path, dpi=110)
    plt.close(fig)


def _draw_losses(axis: Any, figures: dict[str, Any], methods: list[str]) -> None:
    """Points lost: the interquartile mean, its interval, and every seed."""
    for place, method in enumerate(methods):
        own, color = figures[method], _color(method)
        teacher = 100 * own["iqm"] + own["points_lost"]
        low, high = (teacher - 100 * bound for bound in reversed(own["ci"]))
        axis.plot([low, high], [place, place], color=color, linewidth=2)
        axis.plot([teacher - 100 * score for score in own["seeds"]], [place] * len(own["seeds"]), "|", color=color)
        axis.plot(own["points_lost"], place, "o", color=color)
    axis.set_yticks(range(len(methods)), methods)
    axis.set_xlabel("points of test mAP lost")
    axis.grid(axis="x", alpha=0.3)


def _draw_curves(axis: Any, rows: list[dict[str, Any]], methods: list[str]) -> None:
    """The best divergence so far, of the main methods with a name each."""
    for method in reversed(methods):
        own = [r for r in rows if r["method"] == method]
        evaluations = np.linspace(0, max(r["budget"] for r in own), GRID)
        label = method if method in COLORS else None
        width = 2.5 if method == AGENT else 1.2
        axis.plot(evaluations, curve_of(own, evaluations), label=label, color=_color(method), linewidth=width)
    axis.set_xlabel("student evaluations")
    axis.set_ylabel("best divergence so far (others in grey)")
    axis.legend(fontsize="small")


def _color(method: str) -> str:
    return COLORS.get(method, "0.7")


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
