"""How the training went: rewards, and what the agent's logger wrote."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from agents.report.figures import Drawing, drawn, legend_name, thinned, tried_tip
from agents.report.run import Curve, Run
from agents.report.svg import LINES, MARKERS, SERIES

CURVES = {  # of the agent's logger, with what they are called
    "rollout/exploration_rate": "Exploration rate",
    "q_values/mean_max": "Mean of the largest Q-values",
    "train/loss": "Loss of the agent",
    "self_evaluation/alpha": "Alpha",
    "self_evaluation/beta": "Beta",
    "self_evaluation/mse": "MSE of the self-evaluation",
}


def rewards_drawing(runs: Sequence[Run]) -> Drawing:
    """The reward of every episode and the best so far."""

    def draw(figure: Figure) -> dict[str, list[str]]:
        axis, tips = figure.subplots(), {}
        for place, run in enumerate(runs):
            color = SERIES[place % len(SERIES)]
            episodes = [tried for tried in run.tried if math.isfinite(tried.reward)]
            if not episodes:
                continue
            shown, marker = thinned(episodes, []), MARKERS[place % len(MARKERS)]
            gid, label = f"episodes-{place}", legend_name(run.name)
            points = [e.number for e in shown], [e.reward for e in shown]
            axis.scatter(*points, gid=gid, marker=marker, s=16, color=color, alpha=0.9, linewidths=0, label=label)
            tips[gid] = [tried_tip(run, tried, len(runs) > 1) for tried in shown]
            if run.adjustments:  # rewards of different alpha and beta cannot be compared
                continue
            for target in dict.fromkeys(e.target for e in episodes):
                own = [e for e in episodes if e.target == target]
                best = np.maximum.accumulate([e.reward for e in own])
                style = {"color": color, "linestyle": LINES[place % len(LINES)], "drawstyle": "steps-post"}
                axis.plot([e.number for e in own], best, linewidth=1.5, **style)
        axis.set_xlabel("episode")
        axis.set_ylabel("reward")
        if len(runs) > 1:
            axis.legend(fontsize="small")
        return tips

    caption = (
        "Every episode, plans of baselines included, and the best so far of each target, where alpha and beta stay."
    )
    return drawn("rewards", "Reward", caption, draw)


def curve_drawings(runs: Sequence[Run]) -> list[Drawing]:
    """What the agent's logger wrote, a small drawing each."""
    drawings = []
    for number, (key, title) in enumerate(CURVES.items()):
        curves = [(place, run, run.curves.get(key, [])) for place, run in enumerate(runs)]
        shown = [(place, run, curve) for place, run, curve in curves if len(curve) > 1]
        if shown:
            drawings.append(_curve_drawing(f"curve{number}", title, shown, len(runs) > 1))
    return drawings


def _curve_drawing(name: str, title: str, shown: Sequence[tuple[int, Run, Curve]], several: bool) -> Drawing:
    def draw(figure: Figure) -> dict[str, list[str]]:
        axis = figure.subplots()
        for place, run, curve in shown:
            axis.plot(
                *zip(*curve, strict=True),
                color=SERIES[place % len(SERIES)],
                linestyle=LINES[place % len(LINES)],
                linewidth=1.5,
                label=legend_name(run.name),
            )
        axis.set_xlabel("steps of the environment")
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        if several:
            axis.legend(fontsize="small")
        return {}

    return drawn(
        name, title[0].upper() + title[1:], f"{title[0].upper() + title[1:]} over the training.", draw, (4.4, 2.8)
    )
