"""Shortcuts on a network with two towers and linear layers: whole episodes against the reference path."""

from typing import Any

import numpy as np
import pytest
from towers_task import TowersTask

from hsq_env.env import HSQEnv
from hsq_env.file import student_bytes
from hsq_env.shortcuts import SWITCHES, Shortcuts

LAYERS = 6
SETTINGS: list[dict[str, Any]] = [
    {},
    {"finetune_scope": "layer"},
    {"finetune_scope": "all"},
    {"step_minibatches": 0},
    {"activation_bits": None},
    {"bfloat16": True},
    {"bfloat16": True, "finetune_scope": "layer"},
]


@pytest.fixture(scope="module")
def towers() -> TowersTask:
    return TowersTask()


def make(task: TowersTask, shortcuts: Shortcuts, **settings: Any) -> HSQEnv:
    return HSQEnv(task, shortcuts=shortcuts, sensitivities=np.zeros((LAYERS, 12)), **settings)


def episode(env: HSQEnv, actions: list[int]) -> list[Any]:
    env.reset()
    seen: list[Any] = []
    for action in actions:
        observation, reward, _, _, info = env.step(action)
        seen.append((observation.tolist(), reward, info["accuracy"], info["diverged"]))
    return [*seen, student_bytes(env.student)]


def episodes(seed: int) -> list[list[int]]:
    return np.random.default_rng(seed).integers(0, 12, (3, LAYERS)).tolist()


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_reference_path_gives_the_same(towers: TowersTask, settings: dict[str, Any]) -> None:
    fast, reference = make(towers, Shortcuts(), **settings), make(towers, Shortcuts.none(), **settings)
    assert len(fast.layers) == LAYERS
    for actions in episodes(0):
        assert episode(fast, actions) == episode(reference, actions)


@pytest.mark.parametrize("switch", SWITCHES)
@pytest.mark.parametrize("bfloat16", [False, True])
def test_every_switch_alone_gives_the_same(towers: TowersTask, switch: str, bfloat16: bool) -> None:
    one = make(towers, Shortcuts(**{**vars(Shortcuts.none()), switch: True}), bfloat16=bfloat16)
    off = make(towers, Shortcuts(**{**vars(Shortcuts()), switch: False}), bfloat16=bfloat16)
    for actions in episodes(1)[:2]:
        assert episode(one, actions) == episode(off, actions)
