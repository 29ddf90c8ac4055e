"""The self-evaluation loop in a search: adjustments are applied, logged and, where images change, answered."""

import csv
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import ConvertCallback
from stable_baselines3.common.logger import configure
from tiny_task import TinyBatch, TinyTask

from agents.algorithms import make_agent
from agents.self_evaluation import SelfEvaluationCallback
from hsq_env.env import HSQEnv
from hsq_env.self_evaluation import SelfEvaluation

NONE = np.zeros((7, 12))


def agent_on(env: gym.Env[Any, Any], **arguments: Any) -> Any:
    return make_agent("dqn", env, seed=0, **arguments)


def test_adjustments_reach_the_environment_and_the_logs(tiny: TinyTask, tmp_path: Path) -> None:
    env = HSQEnv(tiny, step_minibatches=0, sensitivities=NONE)
    agent = agent_on(env)
    agent.set_logger(configure(str(tmp_path), ["csv", "tensorboard"]))
    callback = SelfEvaluationCallback(SelfEvaluation(0.95, 8.0), window=2)
    agent.learn(6 * 7, callback=callback)
    assert len(callback.adjustments) == 3
    assert (env.alpha, env.beta) == (callback.adjustments[-1].alpha, callback.adjustments[-1].beta)
    assert len({(a.alpha, a.beta) for a in callback.adjustments}) == 3
    rows = list(csv.DictReader((tmp_path / "progress.csv").open()))
    told = [row["self_evaluation/reason"] for row in rows if row["self_evaluation/reason"]]
    assert told == [a.reason for a in callback.adjustments]
    merits = [float(row["self_evaluation/mse"]) for row in rows if row["self_evaluation/mse"]]
    assert merits == pytest.approx([a.mse for a in callback.adjustments])
    assert list(tmp_path.glob("events.out.tfevents.*"))


def test_agents_see_the_weights_that_count(tiny: TinyTask) -> None:
    env = HSQEnv(tiny, step_minibatches=0, sensitivities=NONE)
    at = [env.observation_names.index(name) for name in ("alpha", "beta")]
    callback = SelfEvaluationCallback(SelfEvaluation(0.95, 8.0), window=1)
    seen: list[bool] = []

    def look(given: dict[str, Any], _: dict[str, Any]) -> bool:
        seen.append(np.allclose(given["self"]._last_obs[0, at], callback._weights))
        return True

    # before a step's adjustment what is shown is what counted in that step
    agent_on(env).learn(4 * 7, callback=[ConvertCallback(look), callback])
    assert len({(a.alpha, a.beta) for a in callback.adjustments}) == 4
    assert len(seen) == 4 * 7
    assert all(seen)


def test_windows_are_means_of_finished_episodes(tiny: TinyTask) -> None:
    env = HSQEnv(tiny, step_minibatches=0, sensitivities=NONE)
    loop = SelfEvaluation(0.95, 8.0)
    seen: list[tuple[float, float]] = []

    class Noting(gym.Wrapper[Any, Any, Any, Any]):
        def step(self, action: Any) -> Any:
            result = self.env.step(action)
            if "plan" in result[4]:
                seen.append((result[4]["accuracy"], result[4]["ratio"]))
            return result

    agent_on(Noting(env)).learn(7 * 7, callback=SelfEvaluationCallback(loop, window=3))
    assert len(loop.windows) == 2
    for index, window in enumerate(loop.windows):
        expected = np.mean(seen[3 * index : 3 * index + 3], axis=0)
        assert (window.accuracy, window.ratio) == pytest.approx(tuple(expected))


class Corrupted(TinyTask):
    """The tiny task, whose search images are noise."""

    def __init__(self, tiny: TinyTask) -> None:
        self.__dict__.update(tiny.__dict__)
        generator = torch.Generator().manual_seed(0)
        clean = tiny.evaluation("search")
        self._noise = [
            TinyBatch(b.images + 6.0 * torch.randn(b.images.shape, generator=generator), b.labels) for b in clean
        ]

    def evaluation(self, split: str) -> Any:
        return self._noise if split == "search" else super().evaluation(split)


class Switched(gym.Wrapper[Any, Any, Any, Any]):
    """One environment for some episodes, another for some, then the first again.

    Accuracy stays relative to the teacher on clean images: that is what a watcher sees when a camera fails.
    """

    def __init__(self, clean: HSQEnv, noisy: HSQEnv, first: int, last: int) -> None:
        super().__init__(clean)
        self.clean, self.noisy, self.first, self.last, self.episode = clean, noisy, first, last, 0
        noisy.compressor.judge.scale = clean.compressor.judge.scale

    def reset(self, **arguments: Any) -> Any:
        self.episode += 1
        weights = self.unwrapped.alpha, self.unwrapped.beta  # type: ignore[attr-defined]
        self.env = self.noisy if self.first < self.episode <= self.last else self.clean
        self.env.set_weights(*weights)
        return self.env.reset(**arguments)


def test_corrupted_images_are_noticed_and_recovered_from(tiny: TinyTask) -> None:
    """Accuracy collapses in the middle of a search although alpha and beta do not ask for it."""
    clean, noisy = (HSQEnv(task, step_minibatches=0, sensitivities=NONE) for task in (tiny, Corrupted(tiny)))
    env = Switched(clean, noisy, first=36, last=60)
    agent = agent_on(env, exploration_initial_eps=0.05, exploration_fraction=0.01)
    loop = SelfEvaluation(1.0, 11.0)
    callback = SelfEvaluationCallback(loop, window=3, exploration=0.5, exploring=6)
    sizes: list[int] = []
    rates: list[float] = []

    class Watch(SelfEvaluationCallback):
        def _on_step(self) -> bool:
            sizes.append(agent.replay_buffer.size())
            rates.append(agent.exploration_rate)
            return True

    agent.learn(102 * 7, callback=[callback, Watch(loop)])
    asked = [a.explore_again for a in callback.adjustments]  # one per three episodes
    reacted = asked.index(True)
    assert 12 <= reacted < 20  # while the images are corrupted
    at = (3 * reacted + 3) * 7
    assert min(sizes[at - 2 : at + 7]) <= 7 < sizes[at - 9]  # the stale replay is gone
    assert max(rates[at : at + 7]) > 0.4 and rates[-1] <= 0.05  # exploration rose and fell again
    merits = [a.mse for a in callback.adjustments]
    assert min(merits[12:20]) > 0.1  # while the images are corrupted
    assert max(min(merits[:12]), np.median(merits[-8:])) < 0.15 * min(merits[12:20])  # before, and again in the end


@pytest.mark.parametrize("total", [100, 10_000_000])
def test_exploration_falls_over_episodes_whatever_limits_the_search(tiny: TinyTask, total: int) -> None:
    env = HSQEnv(tiny, step_minibatches=0, sensitivities=NONE)
    agent = agent_on(env)
    callback = SelfEvaluationCallback(SelfEvaluation(0.95, 8.0), window=100, exploration=0.5, exploring=4)
    rates: list[float] = []

    def on_step(local: dict[str, Any], of_module: dict[str, Any]) -> bool:
        if "plan" in local["infos"][0]:
            rates.append(agent.exploration_rate)
            if len(rates) == 1:
                callback._explore_again()
        return len(rates) < 7

    agent.learn(total, callback=[callback, ConvertCallback(on_step)])
    end = agent.exploration_final_eps
    assert rates[1:] == pytest.approx([0.5 + share * (end - 0.5) for share in (0, 0.25, 0.5, 0.75, 1, 1)])


def test_agents_without_a_replay_go_on(tiny: TinyTask) -> None:
    env = HSQEnv(tiny, step_minibatches=0, sensitivities=NONE)
    agent = make_agent("ppo", env, n_steps=7, batch_size=7)
    callback = SelfEvaluationCallback(SelfEvaluation(0.95, 8.0), window=1)
    agent.learn(14, callback=callback)
    callback._explore_again()
    assert len(callback.adjustments) == 2
