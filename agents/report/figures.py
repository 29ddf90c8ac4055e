"""The drawings of a report, and those of accuracy against size."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from matplotlib.figure import Figure

from agents.pareto import pareto_front
from agents.report.run import Model, Run, Tried
from agents.report.svg import LINES, MARKERS, ROLES, SERIES, new_figure, style, to_svg

WIDTH, HEIGHT = 5.6, 3.9  # inches of a drawing that fills half a page
MOST_POINTS = 1500  # of one run in one drawing; more are thinned out, the front never
Item = TypeVar("Item")
STAND_OUT = 0.05  # of the plans may lie below the axis, at its edge


@dataclass(frozen=True)
class Drawing:
    """A figure of the page.

    :param svg: an ``<svg>`` element
    :param wide: whether it needs the whole page, and scrolls where that is narrow
    """

    name: str
    title: str
    caption: str
    svg: str
    wide: bool = False


def drawn(
    name: str,
    title: str,
    caption: str,
    draw: Callable[[Figure], dict[str, list[str]]],
    size: tuple[float, float] = (WIDTH, HEIGHT),
    wide: bool = False,
) -> Drawing:
    """Make a drawing.

    :param draw: draws, and gives the tips of what it drew by gid
    """
    with style():
        figure = new_figure(*size)
        tips = draw(figure)
        return Drawing(name, title, caption, to_svg(figure, name, tips), wide)


def models_drawing(runs: Sequence[Run]) -> Drawing:
    """Finished models of all runs: the metric on the test split against the ratio of real files."""
    several = len(runs) > 1

    def draw(figure: Figure) -> dict[str, list[str]]:
        axis, tips = figure.subplots(), {}
        for place, run in enumerate(runs):
            baselines = [model for model in run.models if not model.found]
            own = sorted((model for model in run.models if model.found), key=lambda model: model.ratio)
            for kind, models in (("baselines", baselines), ("found", own)):
                if not models:
                    continue
                filled = SERIES[place % len(SERIES)] if kind == "found" else "none"
                label = legend_name(f"{run.name}, " * several + kind)
                gid = f"{kind}-{place}"
                axis.scatter(
                    [model.ratio for model in models],
                    [model.score for model in models],
                    gid=gid,
                    marker=MARKERS[place % len(MARKERS)],
                    s=49,
                    facecolors=filled,
                    edgecolors=SERIES[place % len(SERIES)],
                    label=label,
                    zorder=3,
                )
                tips[gid] = [_model_tip(run, model, several) for model in models]
            teacher = "teacher" if place == 0 else None
            color = SERIES[place % len(SERIES)] if several else ROLES["muted"]
            axis.axhline(run.teacher_score, color=color, linestyle="--", linewidth=1, label=teacher)
        axis.set_xlabel("times smaller than the float32 file")
        axis.set_ylabel(f"{runs[0].metric} (test split)")
        _above_the_rest(axis, [model.score for run in runs for model in run.models], [r.teacher_score for r in runs])
        axis.legend(fontsize="small")
        return tips

    caption = "Finished models by their real files; dashed lines are the teachers. Hollow: what it is compared with."
    return drawn("models", "Finished models, test split", caption, draw)


def _model_tip(run: Run, model: Model, several: bool) -> str:
    unit, _ = run.lost_in
    source = f", plan from {model.source}" if model.source else ""
    name = f"{run.name}: " if several else ""
    return (
        f"{name}{model.title}: {run.metric} {model.score:.4f}, {run.lost(model):.2f} {unit}, {model.bytes:,} bytes, "
        f"{model.ratio:.2f}x{source}"
    )


def plans_drawing(runs: Sequence[Run], measure: str = "accuracy") -> Drawing:
    """Every plan that was evaluated: accuracy or divergence against the ratio, with the front.

    :param measure: "accuracy" or "divergence"
    """
    upwards = measure == "accuracy"

    values = [value for run in runs for value, _ in _placed(run, measure)]
    low = _lower_end(values) if upwards else None

    def draw(figure: Figure) -> dict[str, list[str]]:
        axis, tips = figure.subplots(), {}
        for place, run in enumerate(runs):
            color, marker = SERIES[place % len(SERIES)], MARKERS[place % len(MARKERS)]
            placed = _placed(run, measure)
            if not placed:
                continue
            points = [(tried.ratio, value if upwards else -value) for value, tried in placed]
            first = {points[i]: i for i in reversed(pareto_front(points))}  # of those that are equal
            on_front = sorted(first.values())
            chosen = _winners(run)
            shown = thinned(placed, on_front)
            gid = f"plans-{place}"
            axis.scatter(
                [tried.ratio for _, tried in shown],
                [value if low is None else max(value, low) for value, _ in shown],
                gid=gid,
                marker=marker,
                s=20,
                color=color,
                alpha=0.9,
                linewidths=0,
                label=legend_name(run.name) if len(runs) > 1 else f"{len(placed):,} plans",
            )
            tips[gid] = [tried_tip(run, tried, len(runs) > 1) for _, tried in shown]
            steps = sorted((placed[i][1].ratio, placed[i][0]) for i in on_front)
            steps = [(ratio, value if low is None else max(value, low)) for ratio, value in steps]
            line = LINES[place % len(LINES)]
            axis.plot(*zip(*steps, strict=True), color=color, ls=line, linewidth=1.2, drawstyle="steps-pre", zorder=2)
            stars = [(value, tried) for value, tried in placed if tried.number in chosen]
            if stars:
                gid = f"chosen-{place}"
                axis.scatter(
                    [tried.ratio for _, tried in stars],
                    [value if low is None else max(value, low) for value, _ in stars],
                    gid=gid,
                    marker="*",
                    s=170,
                    color=color,
                    edgecolors=ROLES["ink"],
                    linewidths=0.8,
                    zorder=4,
                )
                tips[gid] = ["Handed over. " + tried_tip(run, tried, len(runs) > 1) for _, tried in stars]
        axis.scatter([], [], marker="*", s=110, facecolors="none", edgecolors=ROLES["ink"], label="handed over")
        axis.set_xlabel("times smaller, as packed")
        axis.set_ylabel("accuracy, share of the teacher's" if upwards else "divergence from the teacher")
        if not upwards and values and all(value > 0 for value in values):
            axis.set_yscale("log")
        axis.legend(fontsize="small")
        return tips

    caption = (
        "Search split, before any fine-tuning at length; the line joins plans that no other beats on both counts, "
        "stars became models."
    )
    if not upwards:
        return drawn("divergence", "Every plan that was tried: divergence", caption, draw)
    below = 0 if low is None else sum(value < low for value in values)
    caption += f" {below} plans below {low:.2f} lie at the edge." if below else ""
    return drawn("plans", "Every plan that was tried: accuracy", caption, draw)


def legend_name(name: str) -> str:
    """matplotlib leaves out what begins with an underscore."""
    return "\u200b" + name if name.startswith("_") else name


def _placed(run: Run, measure: str) -> list[tuple[float, Tried]]:
    pairs = [(float(getattr(tried, measure)), tried) for tried in run.tried]
    return [(value, tried) for value, tried in pairs if math.isfinite(value) and math.isfinite(tried.ratio)]


def _winners(run: Run) -> set[int]:
    """Numbers of the episodes whose plans became models."""
    history = run.record.get("history", [])
    own = [[[c.bits, c.sparsity] for c in model.choices] for model in run.models if model.choices is not None]
    first: dict[str, int] = {}
    for number, episode in enumerate(history, 1):
        if episode.get("choices") in own:
            first.setdefault(str(episode["choices"]), number)
    return set(first.values())


def thinned(placed: Sequence[Item], kept: Sequence[int]) -> list[Item]:
    """At most about ``MOST_POINTS``, those at ``kept`` among them."""
    every = -(-len(placed) // MOST_POINTS) or 1
    wanted = sorted({*range(0, len(placed), every), *kept})
    return [placed[i] for i in wanted]


def _lower_end(values: Sequence[float]) -> float | None:
    """Where an axis may begin so that a few plans that lost nearly everything do not press the others together."""
    if not values:
        return None
    low, median, high = (float(np.quantile(values, q)) for q in (STAND_OUT, 0.5, 1.0))
    return None if median - min(values) <= 4 * (high - median) + 0.02 else min(low, median - (high - median))


def _above_the_rest(axis: Any, values: Sequence[float], teachers: Sequence[float]) -> None:
    """Leave out nothing, but a little room."""
    low, high = min([*values, *teachers]), max([*values, *teachers])
    room = 0.06 * (high - low) or 0.01
    axis.set_ylim(low - room, high + room)


def tried_tip(run: Run, tried: Tried, several: bool) -> str:
    """What an episode came to, in a line."""
    name = f"{run.name}, " if several else ""
    return (
        f"{name}episode {tried.number} ({tried.source}): accuracy {tried.accuracy:.4f}, {tried.ratio:.2f}x, divergence "
        f"{tried.divergence:.3f}, reward {tried.reward:.3f}"
    )
