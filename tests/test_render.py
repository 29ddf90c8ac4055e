"""What an episode looks like."""

import numpy as np

from hsq_env.choices import Choice
from hsq_env.layer_info import LayerInfo
from hsq_env.render import BAR, BITS_COLOR, EMPTY_COLOR, GAP, HEIGHT, SPARSITY_COLOR, render_ansi, render_bars


def test_table(infos: tuple[LayerInfo, ...]) -> None:
    text = render_ansi(infos, [Choice(8), Choice(2, 0.75)], 0.98765, 3.14159)
    assert text.splitlines() == [
        "layer         weights  bits  sparsity",
        "stem              144     8        0%",
        "block1.conv1     2304     2       75%",
        "block1.conv2     2304  <-",
        "block2.conv1     2304",
        "block2.conv2     2304",
        "head.0            256",
        "logits             48",
        "2 of 7 layers, accuracy 0.988, ratio 3.14",
    ]


def test_a_finished_table_points_nowhere(infos: tuple[LayerInfo, ...]) -> None:
    text = render_ansi(infos, [Choice(4)] * 7, 1.0, 5.0)
    assert "<-" not in text and text.endswith("7 of 7 layers, accuracy 1.000, ratio 5.00\n")


def bar(image: np.ndarray, layer: int, row: int, color: tuple[int, int, int]) -> int:
    """Height in pixels of a layer's bar, which must be one block that stands on the row's ground."""
    left, bottom = GAP + layer * (BAR + GAP), (row + 1) * (HEIGHT + GAP)
    filled = (image[bottom - HEIGHT : bottom, left : left + BAR] == color).all(axis=(1, 2))
    height = int(filled.sum())
    assert filled[HEIGHT - height :].all()
    return height


def test_bars_are_as_high_as_bits_and_sparsity() -> None:
    image = render_bars(4, [Choice(8, 0.0), Choice(2, 0.75), Choice(4, 0.5)])
    assert image.dtype == np.uint8 and image.shape == (2 * HEIGHT + 3 * GAP, 4 * (BAR + GAP) + GAP, 3)
    assert [bar(image, layer, 0, BITS_COLOR) for layer in range(4)] == [64, 16, 32, 0]
    assert [bar(image, layer, 1, SPARSITY_COLOR) for layer in range(4)] == [1, 48, 32, 0]
    assert [bar(image, 3, row, EMPTY_COLOR) for row in range(2)] == [3, 3]
    colored = int((image != 255).any(axis=2).sum())
    assert colored == BAR * (64 + 16 + 32 + 1 + 48 + 32 + 3 + 3)
