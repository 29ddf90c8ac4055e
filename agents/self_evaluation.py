"""The self-evaluation loop as a callback: windows of episodes in, alpha and beta out, exploration when it is due."""

import math
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from hsq_env.self_evaluation import Adjustment, SelfEvaluation, Window


class SelfEvaluationCallback(BaseCallback):
    """Tells ``SelfEvaluation`` of every window of episodes and passes on what it says.

    Every adjustment is logged with its reason: TensorBoard's scalars and texts, and a row of ``progress.csv`` where the
    logger writes one. Where accuracy has fallen and nothing explains it, what the replay holds no longer tells the
    truth: it is dropped, and an agent with an exploration rate starts exploring again.

    :param loop: targets and memory
    :param window: episodes per adjustment
    :param exploration: rate that exploration starts again with
    :param exploring: episodes over which it falls to the agent's final rate
    """

    def __init__(self, loop: SelfEvaluation, window: int = 5, exploration: float = 0.3, exploring: int = 10) -> None:
        super().__init__()
        self.loop, self.window, self.exploration, self.exploring = loop, window, exploration, exploring
        self.adjustments: list[Adjustment] = []
        self._ends: list[tuple[float, float]] = []
        self._falling: _Falling | None = None
        self._weights = (math.nan, math.nan)

    def _on_training_start(self) -> None:
        self._weights = self._read_weights()

    def _read_weights(self) -> tuple[float, float]:
        return self.training_env.get_attr("alpha")[0], self.training_env.get_attr("beta")[0]

    def on_new_workers(self) -> None:
        """They begin with the first alpha and beta."""
        self._pass_on(self.model._last_obs)

    def _on_step(self) -> bool:
        if any(info.get("worker_lost") for info in self.locals["infos"]):
            self._pass_on(self.locals["new_obs"])
        for info in self.locals["infos"]:
            if "plan" in info:
                if self._falling is not None:
                    self._falling.finished += 1
                self._ends.append((info["accuracy"], info["ratio"]))
        if len(self._ends) >= self.window:
            self._adjust()
        return True

    def _adjust(self) -> None:
        accuracy, ratio = np.mean(self._ends, axis=0)
        self._ends.clear()
        adjustment = self.loop.observe(Window(*self._weights, float(accuracy), float(ratio)))
        self.adjustments.append(adjustment)
        self._weights = (adjustment.alpha, adjustment.beta)
        self._pass_on(self.locals["new_obs"])
        if adjustment.explore_again:
            self._explore_again()
        record = self.logger.record
        record("self_evaluation/mse", adjustment.mse)
        record("self_evaluation/accuracy", float(accuracy))
        record("self_evaluation/ratio", float(ratio))
        record("self_evaluation/alpha", adjustment.alpha)
        record("self_evaluation/beta", adjustment.beta)
        record("self_evaluation/explore_again", int(adjustment.explore_again))
        record("self_evaluation/reason", adjustment.reason)
        record("time/total_timesteps", self.num_timesteps, exclude="tensorboard")
        self.logger.dump(self.num_timesteps)

    def _pass_on(self, shown: Any) -> None:
        """Tell the environments, and correct what they have shown already: the first layer of episodes to come."""
        self.training_env.env_method("set_weights", *self._weights)
        names = self.training_env.get_attr("observation_names")[0]
        if isinstance(shown, np.ndarray) and shown.shape[1:] == (len(names),):
            shown[:, [names.index("alpha"), names.index("beta")]] = self._weights

    def _explore_again(self) -> None:
        model: Any = self.model
        if isinstance(model, OffPolicyAlgorithm) and model.replay_buffer is not None:
            model.replay_buffer.reset()
        if hasattr(model, "exploration_schedule"):
            self._falling = model.exploration_schedule = _Falling(
                self.exploration, model.exploration_final_eps, self.exploring
            )


class _Falling:
    """A rate that falls linearly over episodes from now on; a class, so that agents can be saved with it."""

    def __init__(self, start: float, end: float, episodes: int) -> None:
        self.start, self.end, self.episodes, self.finished = start, end, episodes, 0

    def __call__(self, progress_remaining: float) -> float:
        return self.start + min(1.0, self.finished / max(1, self.episodes)) * (self.end - self.start)
