"""What the paper checks itself by: Q-values over training, and the regression of accuracy on bits and sparsity."""

from typing import Any

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from agents.masked import FORBIDDEN, ExploresAllowed
from agents.regression import Step, insensitive_layers, regress
from hsq_env.env import HSQEnv

SETTLED = 0.02  # of the largest value seen: less than that between the last quarters of a training is no change
TOLERANCE = 0.002  # accuracy that a layer's harshest choice may cost for it to count as insensitive


class QValues(BaseCallback):
    """Logs the mean over fixed states of the largest Q-value (Mnih et al. 2013, arXiv 1312.5602, section 5.1).

    :param states: observations, (N, features)
    :param every: steps between two looks
    """

    def __init__(self, states: np.ndarray, every: int = 72) -> None:
        super().__init__()
        self.states, self.every = states, every
        self.history: list[tuple[int, float]] = []  # timesteps, mean of the largest values

    def _on_training_start(self) -> None:
        self._look()

    def _on_step(self) -> bool:
        if self.n_calls % self.every == 0:
            self._look()
        return True

    def _look(self) -> None:
        network: Any = getattr(self.model, "q_net", None) or getattr(self.model, "quantile_net", None)
        if network is None or not len(self.states):
            return
        with torch.no_grad():
            values = network(torch.as_tensor(self.states, device=self.model.device))
        values = values.mean(dim=1) if values.dim() == 3 else values  # quantiles
        best = values.amax(dim=1)
        mean = float(best[best > FORBIDDEN / 2].mean())
        self.history.append((self.num_timesteps, mean))
        self.logger.record("q_values/mean_max", mean)

    @property
    def settled(self) -> bool:
        """Whether the last quarter's mean differs little from the quarter's before."""
        values = np.array([value for _, value in self.history])
        quarter = len(values) // 4
        if not quarter:
            return False
        change = abs(values[-quarter:].mean() - values[-2 * quarter : -quarter].mean())
        return bool(change <= SETTLED * np.abs(values).max())


class StepRegression(BaseCallback):
    """Collects every measured step, and turns what the regression shows into priors for exploration.

    A layer whose data shows that even its harshest choice costs next to nothing is not explored any more but among
    its smallest choices: everything else would only spend bytes.

    :param env: choices and sizes
    :param every: episodes between two fits
    """

    def __init__(self, env: HSQEnv, every: int = 5) -> None:
        super().__init__()
        self.env, self.every = env, every
        self.steps: list[Step] = []
        self.insensitive: list[int] = []
        self._seen: set[tuple[int, ...]] = set()
        self._walks: list[tuple[list[int], float]] = []
        self._episodes = 0

    def _on_training_start(self) -> None:
        self._walks = [([], 1.0) for _ in range(self.training_env.num_envs)]

    def on_new_workers(self) -> None:
        """The episodes that were going on are lost."""
        self._on_training_start()

    def _on_step(self) -> bool:
        for worker, info in enumerate(self.locals["infos"]):
            if info.get("worker_lost"):
                self._walks[worker] = ([], 1.0)
                continue
            if info.get("evaluations_spent"):
                continue
            self.add(worker, info)
            if self.locals["dones"][worker]:
                self._walks[worker] = ([], 1.0)
            if "plan" in info:
                self._episodes += 1
                if self._episodes % self.every == 0:
                    self._fit()
        return True

    def add(self, worker: int, info: dict[str, Any]) -> None:
        """Note a step of a worker's episode, unless it was seen before."""
        walk, before = self._walks[worker]
        choice = self.env.actions.decode(info["executed_action"])
        walk.append(choice)
        prefix = tuple(walk)
        if prefix not in self._seen and not info["diverged"]:
            self._seen.add(prefix)
            self.steps.append(Step(len(walk) - 1, self.env.choices[choice], before - info["accuracy"]))
        self._walks[worker] = (walk, info["accuracy"])

    def _fit(self) -> None:
        overall = regress(self.steps)
        if overall is not None:
            for name, value in zip(("intercept", "bits", "sparsity"), overall.coefficients, strict=True):
                self.logger.record(f"regression/{name}", value)
            self.logger.record("regression/r2", overall.r2)
        layers = len(self.env.layers)
        self.insensitive = insensitive_layers(self.steps, layers, TOLERANCE)
        self.logger.record("regression/insensitive_layers", len(self.insensitive))
        model = self.model
        if isinstance(model, OffPolicyAlgorithm) and isinstance(model, ExploresAllowed):
            sizes = self.env.costs
            small = sizes <= np.quantile(sizes, 0.25, axis=1, keepdims=True)
            model.priors = {k: self.env.actions.mask(small[k]) for k in self.insensitive}
            model.layers = layers

    def to_json(self) -> dict[str, Any]:
        """The regression over all steps, and the layers that it found insensitive."""
        overall = regress(self.steps)
        names = [self.env.layers[k].name for k in self.insensitive]
        return {"all_layers": None if overall is None else overall.to_json(), "insensitive_layers": names}
