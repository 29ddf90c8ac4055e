"""Why the layers of a found plan have their choices: a drawing, and the same as a table."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from agents.report.figures import WIDTH, Drawing, drawn
from agents.report.reasons import choice_text, reason
from agents.report.run import Model, Run
from agents.report.svg import ROLES, SERIES

LAYER_INCHES = 0.14  # of width per layer
NOTHING = 1e-5  # divergences below are drawn there


def layers_drawing(run: Run, model: Model, name: str) -> Drawing:
    """Bits, zeros, sensitivity and share of bytes of every layer of a found plan.

    :param model: with choices, in a run that knows its layers
    """
    assert model.choices is not None
    choices, count = model.choices, len(run.layers)
    columns = [list(run.grid).index(choice) for choice in choices]
    sizes = np.array([layer.bytes[column] for layer, column in zip(run.layers, columns, strict=True)], dtype=float)
    said = [f"#{name}-row{k}" for k in range(count)]  # the table beside it has the words

    def bars(axis: Any, row: str, heights: Sequence[float], color: str) -> dict[str, list[str]]:
        for place, patch in enumerate(axis.bar(range(count), heights, color=color, width=0.8)):
            patch.set_gid(f"{row}-{place}")
        return {f"{row}-{place}": [text] for place, text in enumerate(said)}

    def draw(figure: Figure) -> dict[str, list[str]]:
        axes = figure.subplots(4, 1, sharex=True, height_ratios=(1, 1, 1.4, 1))
        tips = bars(axes[0], "bits", [choice.bits for choice in choices], SERIES[0])
        tips.update(bars(axes[1], "zeros", [100 * choice.sparsity for choice in choices], SERIES[1]))
        _draw_sensitivities(axes[2], run, columns)
        tips["own"] = said
        tips.update(bars(axes[3], "share", (100 * sizes / sizes.sum()).tolist(), SERIES[2]))
        for axis, label in zip(axes, ("bits", "zeros, %", "divergence\nalone", "share of\nbytes, %"), strict=True):
            axis.set_ylabel(label)
        axes[0].set_yticks(sorted({choice.bits for choice in run.grid}))
        axes[1].set_ylim(0, 100)
        axes[3].set_xlabel("layer, in the order in which they first run")
        axes[3].set_xlim(-0.8, count - 0.2)
        return tips

    caption = "Dots in the third row: what the layer's choice alone does; lines: its mildest to its harshest choice."
    width = max(WIDTH, 1.2 + LAYER_INCHES * count)
    return drawn(name, f"{model.title}: why each layer has its choice", caption, draw, (width, 6.0), wide=True)


def _draw_sensitivities(axis: Any, run: Run, columns: Sequence[int]) -> None:
    table = np.maximum([layer.sensitivity for layer in run.layers], NOTHING)
    places = range(len(run.layers))
    axis.vlines(places, table.min(axis=1), table.max(axis=1), color=ROLES["muted"], linewidth=1.5)
    own = [table[k, column] for k, column in enumerate(columns)]
    axis.scatter(places, own, gid="own", color=SERIES[3], s=22, zorder=3)
    axis.set_yscale("log")


def layer_rows(run: Run, model: Model) -> list[dict[str, str]]:
    """The same as a table: name, choice, reason."""
    assert model.choices is not None
    return [
        {
            "name": layer.name,
            "choice": choice_text(model.choices[k]),
            "reason": reason(run.layers, k, model.choices, run.grid),
        }
        for k, layer in enumerate(run.layers)
    ]


def explained(run: Run) -> list[Model]:
    """Models whose layers' choices can be explained."""
    fitting = [model for model in run.models if model.choices is not None and len(model.choices) == len(run.layers)]
    return [model for model in fitting if run.layers and set(model.choices or ()) <= set(run.grid)]
