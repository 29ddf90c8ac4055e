"""Bit operations by hand."""

import pytest
from tiny_task import TinyTask

from hsq_env.choices import Choice
from hsq_env.env import HSQEnv
from hsq_env.operations import bit_operations
from hsq_env.student import LayerInfo


@pytest.mark.parametrize(
    ("choice", "activation_bits", "per_mac"),
    [
        (None, 8, 1024),
        (Choice(8), 8, 64),
        (Choice(2), 8, 16),
        (Choice(4, 0.75), 8, 8),
        (Choice(4), "match", 16),
        (Choice(2, 0.5), None, 32),
    ],
)
def test_per_multiplication(
    infos: tuple[LayerInfo, ...], choice: Choice | None, activation_bits: int | str | None, per_mac: float
) -> None:
    for info in infos:
        assert bit_operations(info, choice, activation_bits) == info.macs * per_mac


@pytest.mark.parametrize("activation_bits", [8, None, "match"])
def test_an_episodes_costs_add_up(tiny: TinyTask, activation_bits: int | str | None) -> None:
    """Terms of the reward are shares of the float32 network's operations, times the number of layers."""
    env = HSQEnv(tiny, reward="energy", beta=0.5, finetune_steps=0, activation_bits=activation_bits)
    env.reset()
    costs, actions = [], [8, 2, 6, 1, 11, 0, 4]
    for action in actions:
        costs.append(-env.step(action)[4]["reward_terms"]["operations"])
    every = sum(bit_operations(info, None, None) for info in env.layers)
    pairs = zip(env.layers, actions, strict=True)
    expected = sum(bit_operations(info, env.choices[a], activation_bits) for info, a in pairs) / every
    assert sum(costs) == pytest.approx(0.5 * expected * len(env.layers))
