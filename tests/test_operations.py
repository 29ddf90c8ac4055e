"""Bit operations by hand."""

from dataclasses import replace

import pytest
from tiny_task import TinyTask

from hsq_env.choices import Choice, input_bits
from hsq_env.env import HSQEnv
from hsq_env.layer_info import LayerInfo
from hsq_env.operations import bit_operations, operation_shares


@pytest.mark.parametrize(
    ("choice", "inputs", "per_mac"),
    [
        (None, 8, 1024),
        (Choice(8), 8, 64),
        (Choice(2), 8, 16),
        (Choice(4, 0.75), 8, 8),
        (Choice(4), 4, 16),
        (Choice(2, 0.5), None, 32),
    ],
)
def test_per_multiplication(
    infos: tuple[LayerInfo, ...], choice: Choice | None, inputs: int | None, per_mac: float
) -> None:
    for info in infos:
        assert bit_operations(info, choice, inputs) == info.macs * per_mac


def test_whole_channels_count_as_many_as_are_dropped(infos: tuple[LayerInfo, ...]) -> None:
    info = replace(infos[1], shape=(4, 3, 1, 1), macs=300)
    assert bit_operations(info, Choice(4, 0.5), 8, "channels") == pytest.approx(200 * 4 * 8)  # one of three
    assert bit_operations(info, Choice(4, 0.25), 8, "channels") == 300 * 4 * 8  # none
    assert bit_operations(info, Choice(4, 0.5), 8) == bit_operations(info, Choice(4, 0.5), 8, "n:m") == 150 * 4 * 8


@pytest.mark.parametrize("pattern", ["unstructured", "channels"])
@pytest.mark.parametrize("activation_bits", [8, None, "match"])
def test_shares_are_of_all_layers_in_float32(
    infos: tuple[LayerInfo, ...], activation_bits: int | str | None, pattern: str
) -> None:
    choices = (Choice(2, 0.75), Choice(4), Choice(8, 0.5))
    found = operation_shares(infos, choices, activation_bits, pattern)
    every = sum(info.macs for info in infos) * 1024
    for index, (row, info) in enumerate(zip(found, infos, strict=True)):
        bits = [c.bits if activation_bits == "match" and index else activation_bits and 8 for c in choices]
        own = [bit_operations(info, choice, inputs, pattern) for choice, inputs in zip(choices, bits, strict=True)]
        assert row.tolist() == pytest.approx([7 * operations / every for operations in own], rel=1e-12)
    plain = operation_shares(infos, choices, activation_bits)
    assert (found.tolist() == plain.tolist()) == (pattern == "unstructured")


@pytest.mark.parametrize("activation_bits", [8, None, "match"])
def test_an_episodes_costs_add_up(tiny: TinyTask, activation_bits: int | str | None) -> None:
    """Terms of the reward are shares of the float32 network's operations, times the number of layers."""
    env = HSQEnv(tiny, reward="energy", beta=0.5, step_minibatches=0, activation_bits=activation_bits)
    env.reset()
    costs, actions = [], [2, 8, 6, 1, 11, 0, 4]
    for action in actions:
        costs.append(-env.step(action)[4]["reward_terms"]["operations"])
    every = sum(bit_operations(info, None, None) for info in env.layers)
    chosen = [env.choices[action] for action in actions]
    bits = [input_bits(index, choice, activation_bits) for index, choice in enumerate(chosen)]
    expected = sum(map(bit_operations, env.layers, chosen, bits)) / every
    assert sum(costs) == pytest.approx(0.5 * expected * len(env.layers))
