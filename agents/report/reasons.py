"""Why a layer has the choice that it has, in words, from what was measured of it alone."""

from collections.abc import Sequence

from agents.report.run import Layer
from hsq_env.choices import Choice

VISIBLY = 0.9  # of a divergence: more than that is no less to speak of


def choice_text(choice: Choice) -> str:
    """For example "4 bits, 25% zeros"."""
    return f"{choice.bits} bits, " + (f"{choice.sparsity:.0%} zeros" if choice.sparsity else "no zeros")


def sensitivity_of(layer: Layer) -> float:
    """One number for a layer: the divergence that its smallest choice alone causes."""
    return layer.sensitivity[min(range(len(layer.bytes)), key=lambda i: (layer.bytes[i], layer.sensitivity[i]))]


def reason(layers: Sequence[Layer], index: int, choices: Sequence[Choice], grid: Sequence[Choice]) -> str:
    """Some sentences about one layer's choice.

    They say what the choice alone costs, what the next smaller and larger ones would have cost and saved, and where
    another is better on both counts, so that the layer's own sensitivity does not explain the choice.

    :param layers: of the model
    :param index: of the one in question
    :param choices: of every layer
    :param grid: of which each is one
    """
    layer, choice = layers[index], choices[index]
    place = list(grid).index(choice)
    size, harm = layer.bytes[place], layer.sensitivity[place]
    total = sum(other.bytes[list(grid).index(own)] for other, own in zip(layers, choices, strict=True))
    own = sensitivity_of(layer)
    milder = sum(sensitivity_of(other) < own for other in layers)
    said = [
        f"{choice_text(choice)}: {size:,} of {layer.float_bytes:,} bytes, {_share(size, total)} of all layers before "
        f"coding; alone it causes a divergence of {_figure(harm)}."
    ]
    if len(layers) > 1:
        said.append(f"Under its smallest choice {_figure(own)}, more than {milder} of the {len(layers) - 1} others.")
    dominating = [i for i in range(len(grid)) if layer.bytes[i] <= size and layer.sensitivity[i] < harm]
    smaller = [i for i in range(len(grid)) if layer.bytes[i] < size]
    larger = [i for i in range(len(grid)) if layer.bytes[i] > size and layer.sensitivity[i] < VISIBLY * harm]
    if dominating:
        better = min(dominating, key=lambda i: layer.sensitivity[i])
        said.append(
            f"Its own sensitivity does not explain that: {choice_text(grid[better])} alone does less harm "
            f"({_figure(layer.sensitivity[better])}) in no more bytes."
        )
    if smaller:
        next_one = min(smaller, key=lambda i: (-layer.bytes[i], layer.sensitivity[i]))
        said.append(
            f"Next smaller: {choice_text(grid[next_one])} would save {_share(size - layer.bytes[next_one], total)} and "
            f"alone cause {_figure(layer.sensitivity[next_one])}."
        )
    else:
        said.append("There is no smaller choice.")
    if larger:
        next_one = min(larger, key=lambda i: (layer.bytes[i], layer.sensitivity[i]))
        said.append(
            f"Next larger that does visibly less harm: {choice_text(grid[next_one])} would add "
            f"{_share(layer.bytes[next_one] - size, total)} and alone cause {_figure(layer.sensitivity[next_one])}."
        )
    else:
        said.append("No larger choice does visibly less harm.")
    return " ".join(said)


def _share(size: int, total: int) -> str:
    """Of all bytes; in bytes where that would be nothing."""
    return f"{size / total:.1%}" if 1000 * size >= total else f"{size:,} bytes"


def _figure(value: float) -> str:
    return f"{value:.2g}" if abs(value) < 100 else f"{value:.0f}"
