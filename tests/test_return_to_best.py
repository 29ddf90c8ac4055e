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
    inner = HSQEnv(tiny, action_space=space, step_minibatches=0)
    env = ReturnToBest(KeepBest(inner), seed=3)
    env.know(BEST, 100.0, None)
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
    again.know(BEST, 100.0, None)
    assert [again.reset() and again._until for _ in range(40)] == left


def test_without_a_plan_the_agent_has_it_all(tiny: TinyTask) -> None:
    env = ReturnToBest(KeepBest(HSQEnv(tiny, step_minibatches=0)))
    assert play(env, OTHER)[0] == OTHER


def test_a_better_plan_takes_over(tiny: TinyTask) -> None:
    env = ReturnToBest(KeepBest(HSQEnv(tiny, step_minibatches=0, target_ratio=3.0)))
    _, info = play(env, BEST)
    score = -info["divergence"]
    assert env.best == {3.0: (score, BEST)} and info["score"] == score
    env.know(OTHER, score, 3.0)  # no better
    assert env.best == {3.0: (score, BEST)}
    env.know(OTHER, score + 1, 3.0)
    assert env.best == {3.0: (score + 1, OTHER)}
    env._until = 0
    play(env, BEST)
    assert env.best == {3.0: (score + 1, OTHER)}  # what was told counts for as much as what was seen


def test_an_episode_ends_where_it_passes_its_ceiling(tiny: TinyTask) -> None:
    """Whether the agent decides or a plan is played; a beginning ends where it ends."""
    env = ReturnToBest(KeepBest(HSQEnv(tiny, step_minibatches=0)))
    env.reset()
    divergences = [env.step(action)[4]["divergence"] for action in OTHER]
    ceilings = [d + 1e-9 for d in divergences]
    ceilings[3] = divergences[3] - 1e-9
    for proposed, limits, length in (([], ceilings, 4), (OTHER, ceilings, 4), (OTHER[:2], ceilings, 2), ([], [], 7)):
        env.reset()
        env.follow(proposed, limits)
        ends = []
        while not (ends and any(ends[-1])):
            ends.append(env.step(OTHER[len(ends)])[2:4])
        assert len(ends) == length and ends[-1] == ((True, False) if length == 7 else (False, True))
    env.reset()  # forgets the ceilings
    assert not any(env.step(action)[3] for action in OTHER)


def test_every_target_has_a_plan_to_follow(tiny: TinyTask) -> None:
    inner = HSQEnv(tiny, step_minibatches=0, target_ratio=(3.0, 6.0))
    env = ReturnToBest(KeepBest(inner))
    plans = {3.0: BEST, 6.0: OTHER}
    for target, plan in plans.items():
        env.know(plan, 100.0, target)
    for target, plan in plans.items():
        for _ in range(5):
            _, info = env.reset(options={"target_ratio": target})
            assert info["target_ratio"] == target
            until = env._until
            executed = [int(env.step(0)[4]["executed_action"]) for _ in range(7)]
            assert executed[:until] == plan[:until] and executed[until:] == [0] * (7 - until)


def test_following_is_free_whatever_alpha_the_plan_was_measured_with(tiny: TinyTask) -> None:
    inner = HSQEnv(tiny, alpha_control="agent", step_minibatches=1, sensitivities=np.zeros((7, 12)))
    env = ReturnToBest(KeepBest(inner))
    play(env, [inner.actions.encode(choice, 0.9) for choice in BEST])
    env.reset()
    env._until = 6
    assert [int(env.step(0)[4]["executed_action"]) for _ in range(6)] == [4 * choice + 3 for choice in BEST[:6]]
    assert inner.evaluations == 7


def test_a_replay_holds_what_was_executed(tiny: TinyTask) -> None:
    inner = HSQEnv(tiny, step_minibatches=0)
    env = ReturnToBest(KeepBest(inner), seed=1)
    env.know(BEST, 100.0, None)
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
