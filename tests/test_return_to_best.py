"""First return, then explore."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from tiny_task import TinyTask

from agents.algorithms import make_agent
from agents.keep_best import KeepBest
from agents.return_to_best import ReturnToBest
from hsq_env.env import HSQEnv

BEST, OTHER = [8, 4, 4, 8, 5, 4, 8], [1, 2, 3, 0, 1, 2, 3]


def play(env: ReturnToBest, actions: list[Any]) -> list[Any]:
    """The executed actions of an episode, and its last info."""
    env.reset()
    infos = [env.step(action)[4] for action in actions]
    return [[info["executed_action"] for info in infos], infos[-1]]


@pytest.mark.parametrize("space", ["discrete", "multi_discrete", "continuous"])
def test_the_best_plan_is_followed_up_to_a_random_layer(tiny: TinyTask, space: str) -> None:
    inner = HSQEnv(tiny, action_space=space, finetune_steps=0)
    env = ReturnToBest(KeepBest(inner), seed=3)
    env.know(BEST, 100.0)
    left = []
    for _ in range(40):
        executed, info = play(env, [inner.actions.encode(action) for action in OTHER])
        done = [inner.actions.decode(action) for action in executed]
        until = next(i for i, action in enumerate(done) if action != BEST[i])
        assert done == BEST[:until] + OTHER[until:]
        assert info["plan"].choices == tuple(inner.choices[i] for i in done)
        left.append(until)
    assert set(left) == set(range(7))
    assert Counter(left)[6] > Counter(left)[0]  # late layers are cheap to leave at
    again = ReturnToBest(KeepBest(inner), seed=3)
    again.know(BEST, 100.0)
    assert [again.reset() and again._until for _ in range(40)] == left


def test_without_a_plan_the_agent_has_it_all(tiny: TinyTask) -> None:
    env = ReturnToBest(KeepBest(HSQEnv(tiny, finetune_steps=0)))
    assert play(env, OTHER)[0] == OTHER


def test_a_better_plan_takes_over(tiny: TinyTask) -> None:
    env = ReturnToBest(KeepBest(HSQEnv(tiny, finetune_steps=0, target_ratio=3.0)))
    _, info = play(env, BEST)
    assert env.best == BEST and env.score == info["score"] == info["accuracy"]
    env.know(OTHER, info["score"])  # no better
    assert env.best == BEST
    env.know(OTHER, info["score"] + 1)
    assert env.best == OTHER
    env._until = 0
    play(env, BEST)
    assert env.best == OTHER  # what was told counts for as much as what was seen


def test_a_replay_holds_what_was_executed(tiny: TinyTask) -> None:
    inner = HSQEnv(tiny, finetune_steps=0)
    env = ReturnToBest(KeepBest(inner), seed=1)
    env.know(BEST, 100.0)
    agent: Any = make_agent("dqn", env, seed=0, exploration_initial_eps=1.0, exploration_final_eps=1.0)
    executed: list[int] = []
    step = inner.step

    def note(action: Any) -> Any:
        result = step(action)
        executed.append(int(result[4]["executed_action"]))
        return result

    inner.step = note  # type: ignore[method-assign]
    agent.learn(28)
    assert agent.replay_buffer.actions[:28].ravel().tolist() == executed
    starts = np.array(executed).reshape(4, 7)
    assert any(row[0] == BEST[0] for row in starts) and any(row.tolist() != BEST for row in starts)
