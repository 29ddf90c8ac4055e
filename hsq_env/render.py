"""Pictures of an episode: a table as text and bars as pixels."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hsq_env.choices import BITS, Choice
from hsq_env.layer_info import LayerInfo

BAR, GAP, HEIGHT = 8, 2, 64  # pixels; two rows of bars, bits above sparsity
BITS_COLOR, SPARSITY_COLOR, EMPTY_COLOR = (0, 114, 178), (213, 94, 0), (230, 230, 230)  # Okabe-Ito, colour-blind safe


def render_ansi(layers: Sequence[LayerInfo], choices: Sequence[Choice], accuracy: float, ratio: float) -> str:
    """A line per layer, decided ones with their choice, and the standing below."""
    width = max(len(info.name) for info in layers)
    lines = [f"{'layer':<{width}}  weights  bits  sparsity"]
    for index, info in enumerate(layers):
        row = f"{info.name:<{width}}  {int(np.prod(info.shape)):>7}"
        if index < len(choices):
            row += f"  {choices[index].bits:>4}  {choices[index].sparsity:>8.0%}"
        elif index == len(choices):
            row += "  <-"
        lines.append(row)
    lines.append(f"{len(choices)} of {len(layers)} layers, accuracy {accuracy:.3f}, ratio {ratio:.2f}")
    return "\n".join(lines) + "\n"


def render_bars(layers: int, choices: Sequence[Choice]) -> NDArray[np.uint8]:
    """Bits per layer above, sparsity below, as (height, width, 3) pixels; undecided layers are grey stubs."""
    image = np.full((2 * HEIGHT + 3 * GAP, layers * (BAR + GAP) + GAP, 3), 255, dtype=np.uint8)
    for index in range(layers):
        left = GAP + index * (BAR + GAP)
        shares = [0.05, 0.05]
        colors = [EMPTY_COLOR, EMPTY_COLOR]
        if index < len(choices):
            shares = [choices[index].bits / max(BITS), max(choices[index].sparsity, 0.02)]
            colors = [BITS_COLOR, SPARSITY_COLOR]
        for row, (share, color) in enumerate(zip(shares, colors, strict=True)):
            bottom = (row + 1) * (HEIGHT + GAP)
            image[bottom - round(share * HEIGHT) : bottom, left : left + BAR] = color
    return image
