"""Action masks for value-based agents: forbidden actions get a value below all others.

The environment's observation ends with one number per action that says whether the budget allows it. Masking values by
it covers every place where a value-based agent takes a maximum: the greedy action and the bootstrap target.
"""

from typing import Any

import numpy as np
import torch

from agents.executed import StoresExecuted
from agents.training_progress import TrainingProgress
from detectors.errors import InputError

FORBIDDEN = -1e8  # value of an action that the budget rules out


def masked(values: torch.Tensor, observations: torch.Tensor) -> torch.Tensor:
    """Values (..., actions) of observations (N, features) whose last columns are the mask."""
    mask = observations[:, -values.shape[-1] :] < 0.5
    return values.masked_fill(mask if values.dim() == 2 else mask[:, None], FORBIDDEN)


class ExploresAllowed(StoresExecuted):
    """Mixed into an SB3 agent with an exploration rate: random actions are drawn from the allowed ones.

    ``priors`` may say for some layers which actions are worth exploring at all, as masks over actions; ``layers`` is
    then the number of layers, by which the observation's first number tells which one comes. Exploration falls with the
    share of the training that is done where ``training_progress`` tells it: its steps are not known beforehand.
    """

    exploration_rate: float
    exploration_schedule: Any
    training_progress: TrainingProgress | None = None
    _current_progress_remaining: float
    priors: dict[int, np.ndarray] = {}
    layers = 1

    def _update_current_progress_remaining(self, num_timesteps: int, total_timesteps: int) -> None:
        super()._update_current_progress_remaining(num_timesteps, total_timesteps)  # type: ignore[misc]
        if self.training_progress is not None:
            self._current_progress_remaining = 1.0 - self.training_progress.share

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "training_progress"]  # type: ignore[misc]

    def predict(
        self,
        observation: Any,
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """As SB3's, random actions drawn from the allowed ones, by every worker on its own."""
        count = int(self.action_space.n)  # type: ignore[attr-defined]
        rows = np.atleast_2d(observation)[:, -count:] > 0.5
        if not rows.any(axis=1).all():
            raise InputError(
                f"No action is allowed: this agent reads which are from an observation's last {count} numbers, 0 or 1; "
                "leave out what changes observations (VecNormalize, NormalizeObservation)."
            )
        greedy, state = self.policy.predict(observation, state, episode_start, deterministic)
        if deterministic:
            return greedy, state
        actions = np.atleast_1d(greedy).copy()
        for worker in np.flatnonzero(np.random.rand(len(rows)) < self.exploration_rate):
            layer = round(float(np.atleast_2d(observation)[worker, 0]) * max(1, self.layers - 1))
            worth = rows[worker] & self.priors.get(layer, True)
            actions[worker] = np.random.choice(np.flatnonzero(worth if worth.any() else rows[worker]))
        return (actions if self.policy.is_vectorized_observation(observation) else actions[0]), state
