"""Sizes: bits per weight as documented, tables as the written file has them."""

from dataclasses import replace

import numpy as np
import pytest
from helpers import random_plan
from safetensors.torch import load
from tiny_task import TinyTask

from hsq_env.choices import Choice, choice_grid
from hsq_env.env import HSQEnv
from hsq_env.file import student_bytes
from hsq_env.layer_info import LayerInfo
from hsq_env.size import Encoding, encoding, index_bits, layer_bytes, size_table
from hsq_env.student import Student

SHAPE = (16, 16, 3, 3)  # 2304 weights

# bits, sparsity: kind, bits per weight for codes, bits per weight for the mask
UNSTRUCTURED = {
    (2, 0.0): ("dense", 2.0, 0.0),
    (2, 0.25): ("dense", 2.0, 0.0),  # survivors and mask would take 2.5
    (2, 0.5): ("bitmask", 1.0, 1.0),  # as many bits as "dense", whose balanced levels have no zero
    (2, 0.75): ("bitmask", 0.5, 1.0),
    (4, 0.0): ("dense", 4.0, 0.0),
    (4, 0.25): ("dense", 4.0, 0.0),  # a tie
    (4, 0.5): ("bitmask", 2.0, 1.0),
    (4, 0.75): ("bitmask", 1.0, 1.0),
    (8, 0.0): ("dense", 8.0, 0.0),
    (8, 0.25): ("bitmask", 6.0, 1.0),
    (8, 0.5): ("bitmask", 4.0, 1.0),
    (8, 0.75): ("bitmask", 2.0, 1.0),
}
N_OF_M = {  # an index per group: 2 bits for one of four or three of four, 3 bits for two of four
    (2, 0.0): ("dense", 2.0, 0.0),
    (2, 0.25): ("dense", 2.0, 0.0),  # a tie
    (2, 0.5): ("n:m", 1.0, 0.75),
    (2, 0.75): ("n:m", 0.5, 0.5),
    (4, 0.0): ("dense", 4.0, 0.0),
    (4, 0.25): ("n:m", 3.0, 0.5),
    (4, 0.5): ("n:m", 2.0, 0.75),
    (4, 0.75): ("n:m", 1.0, 0.5),
    (8, 0.0): ("dense", 8.0, 0.0),
    (8, 0.25): ("n:m", 6.0, 0.5),
    (8, 0.5): ("n:m", 4.0, 0.75),
    (8, 0.75): ("n:m", 2.0, 0.5),
}


@pytest.mark.parametrize("choice", choice_grid(), ids=str)
@pytest.mark.parametrize(("pattern", "table"), [("unstructured", UNSTRUCTURED), ("n:m", N_OF_M)])
def test_bits_per_weight(
    choice: Choice, pattern: str, table: dict[tuple[int, float], tuple[str, float, float]]
) -> None:
    kind, codes, mask = table[choice.bits, choice.sparsity]
    assert encoding(SHAPE, choice, pattern) == Encoding(kind, int(2304 * codes / 8), int(2304 * mask / 8))


def test_index_bits() -> None:
    assert [index_bits(s) for s in (0.25, 0.5, 0.75)] == [2, 3, 2]


def test_parts_are_padded_to_whole_bytes() -> None:
    # 27 weights: 13.5 are rounded to 14 removed, 13 survive
    assert encoding((1, 3, 3, 3), Choice(4, 0.5)) == Encoding("bitmask", 7, 4)
    assert encoding((1, 3, 3, 3), Choice(2)) == Encoding("dense", 7, 0)


def test_pattern_falls_back_where_the_fan_in_does_not_fit() -> None:
    assert encoding((4, 3, 3, 3), Choice(8, 0.5), "n:m") == encoding((4, 3, 3, 3), Choice(8, 0.5), "unstructured")


def test_layer_bytes_by_hand(infos: tuple[LayerInfo, ...]) -> None:
    conv = replace(infos[1], shape=SHAPE, has_bias=True, calls=1)
    assert layer_bytes(conv, None) == 4 * (2304 + 16)
    assert layer_bytes(conv, Choice(4)) == 1152 + 16 * (2 + 2) + 8
    assert layer_bytes(conv, Choice(4), quantized_input=False) == 1152 + 16 * (2 + 2)
    assert layer_bytes(replace(conv, has_bias=False, calls=5), Choice(8, 0.75)) == 576 + 288 + 16 * 2 + 8 * 5
    assert layer_bytes(replace(conv, has_bias=False), None) == 4 * 2304


def test_table_has_layers_in_rows(infos: tuple[LayerInfo, ...]) -> None:
    choices = choice_grid()
    table = size_table(infos, choices, "n:m", quantized_input=False)
    assert table.shape == (7, 12) and table.dtype == np.int64
    assert table[3, 5] == layer_bytes(infos[3], choices[5], "n:m", quantized_input=False)
    assert size_table(infos, choices)[3, 5] == layer_bytes(infos[3], choices[5], "unstructured", quantized_input=True)


@pytest.mark.parametrize("activation_bits", [8, None])
@pytest.mark.parametrize("pattern", ["unstructured", "n:m", "channels"])
@pytest.mark.parametrize("seed", range(4))
def test_table_equals_the_tensors_of_the_file(
    tiny: TinyTask, infos: tuple[LayerInfo, ...], seed: int, pattern: str, activation_bits: int | None
) -> None:
    student = Student(tiny, infos, activation_bits, pattern)
    plan = random_plan(infos, seed)
    student.apply(plan)
    tensors = load(student_bytes(student, coded=False))
    packed = sum(t.numel() * t.element_size() for name, t in tensors.items() if not name.startswith("rest."))
    expected = sum(
        layer_bytes(info, choice, pattern, activation_bits is not None)
        for info, choice in zip(infos, plan.choices, strict=True)
    )
    assert packed == expected


@pytest.mark.parametrize("pattern", ["unstructured", "n:m", "channels"])
def test_estimate_is_never_below_the_file_and_within_one_percent(tiny: TinyTask, pattern: str) -> None:
    env = HSQEnv(tiny, sparsity_pattern=pattern, step_minibatches=0)
    rng = np.random.default_rng(0)
    plans = [[action] * 7 for action in range(12)] + [rng.integers(12, size=7).tolist() for _ in range(20)]
    for actions in plans:
        env.reset()
        for action in actions:
            env.step(action)
        written, estimate = len(student_bytes(env.student, coded=False)), env.spent_bytes + env.fixed_bytes
        assert written <= estimate <= 1.01 * written
        assert env.ratio == env.teacher_bytes / estimate
