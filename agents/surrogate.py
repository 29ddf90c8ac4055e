"""A learned model of the damage of a choice, given the layer and what was chosen before, and an environment made of it.

Damages together are less than the sum of each alone, the more so the more is broken already: what an early layer loses
is partly hidden by what later ones lose. A power of the divergence adds up better (``POWER``); it is called the load.
What is modelled is how much a step raises the load. It starts from the sensitivities (each choice alone) and is
corrected by every step that was really measured: Bayesian linear regression on the sensitivities before and after
repair, on their interplay with the load so far, and on a deviation per layer and per choice of a layer. Choices that
were never tried keep the layer's and the network's tendencies and a wide uncertainty, which probes look into.
"""

import copy
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hsq_env.choices import Choice
from hsq_env.env import HSQEnv
from hsq_env.prefixes import Outcome

Array = NDArray[np.float64]

POWER = 1.4  # of the divergence that adds up; on walks at 14x and 17x 1.3 to 1.5 predicted plans better than 1 and 2
BIAS = 0.05  # load that a step may add whatever is chosen
LAYER_SPREAD = 0.5  # prior deviation of a layer's slope
CHOICE_SPREAD, CHOICE_FLOOR = 0.5, 0.01  # of a single choice's damage: relative, absolute
NOISE_SHARE, NOISE_FLOOR = 0.03, 0.003  # of a measured step: relative to the sensitivity, absolute
PRIOR_SLOPE = 0.8  # of the repaired sensitivity


def load(divergences: Any) -> Array:
    """What adds up of divergences; 0 for negative ones."""
    return np.asarray(np.maximum(np.asarray(divergences, dtype=np.float64), 0.0) ** POWER)


def divergence(loads: Any) -> Array:
    """The reverse of ``load``."""
    return np.asarray(np.maximum(np.asarray(loads, dtype=np.float64), 0.0) ** (1 / POWER))


class DamageModel:
    """``load after - load before`` of a step, by Bayesian linear regression. Everything but the arguments is in loads.

    :param raw: sensitivities as they are, divergences, (layers, choices)
    :param repaired: after a step's repair, (layers, choices)
    """

    def __init__(self, raw: Array, repaired: Array) -> None:
        self.raw, self.repaired = load(raw), load(repaired)
        self.layers, self.choices = raw.shape
        size = 6 + 2 * self.layers + raw.size
        self._precision = np.eye(size)
        self._prior = np.zeros(size)
        self._prior[1] = PRIOR_SLOPE
        self._moment = self._precision @ self._prior
        self.steps = 0
        self._factor: Array | None = None
        self._mean = self._prior

    def features(self, layers: Any, choices: Any, before: Any) -> Array:
        """Of steps that take ``choices`` in ``layers`` at a load ``before``, (N, features)."""
        k, c = np.asarray(layers, dtype=np.int64), np.asarray(choices, dtype=np.int64)
        d = np.maximum(np.asarray(before, dtype=np.float64), 0.0)
        repaired, raw, rows = self.repaired[k, c], self.raw[k, c], np.arange(len(k))
        shared = np.stack(
            [np.full(len(k), BIAS), repaired, raw, repaired * np.log1p(d), np.sqrt(repaired * d), BIAS * d], axis=1
        )
        slopes, biases = np.zeros((len(k), self.layers)), np.zeros((len(k), self.layers))
        slopes[rows, k], biases[rows, k] = LAYER_SPREAD * repaired, LAYER_SPREAD * BIAS
        own = np.zeros((len(k), self.layers * self.choices))
        own[rows, k * self.choices + c] = CHOICE_SPREAD * repaired + CHOICE_FLOOR
        return np.concatenate([shared, slopes, biases, own], axis=1)

    def add(self, layers: Any, choices: Any, before: Any, after: Any) -> None:
        """Learn from measured steps."""
        if not len(layers):
            return
        x = self.features(layers, choices, before)
        noise = NOISE_FLOOR + NOISE_SHARE * self.repaired[np.asarray(layers), np.asarray(choices)]
        weighted = x / noise[:, None]
        self._precision += weighted.T @ weighted
        self._moment += weighted.T @ ((np.asarray(after) - np.asarray(before)) / noise)
        self.steps += len(x)
        self._factor = None

    def _solve(self) -> tuple[Array, Array]:
        if self._factor is None:
            self._factor = np.asarray(np.linalg.cholesky(self._precision), dtype=np.float64)
            self._mean = np.asarray(np.linalg.solve(self._precision, self._moment), dtype=np.float64)
        return self._mean, self._factor

    def weights(self, rng: np.random.Generator | None = None, spread: float = 1.0) -> Array:
        """The most likely weights, or a draw from the posterior.

        :param spread: of the draw, in posterior deviations
        """
        mean, factor = self._solve()
        if rng is None or not spread:
            return mean
        return np.asarray(mean + spread * np.linalg.solve(factor.T, rng.standard_normal(len(mean))))

    def deviations(self, before: Array) -> Array:
        """Posterior deviation of the damage of every choice of every layer, (layers, choices).

        :param before: load before each layer, (layers,)
        """
        k, c = np.divmod(np.arange(self.raw.size), self.choices)
        _, factor = self._solve()
        spread = np.linalg.solve(factor, self.features(k, c, before[k]).T)
        return np.asarray(np.sqrt((spread**2).sum(axis=0)).reshape(self.raw.shape))

    def damage(self, layers: Any, choices: Any, before: Any, weights: Array | None = None) -> Array:
        """Expected rise of the load, (N,)."""
        return np.asarray(self.features(layers, choices, before) @ (self.weights() if weights is None else weights))

    def table(self, before: Array, weights: Array | None = None) -> Array:
        """Damage of every choice of every layer, (layers, choices).

        :param before: load before each layer, (layers,)
        """
        k, c = np.divmod(np.arange(self.raw.size), self.choices)
        return self.damage(k, c, before[k], weights).reshape(self.raw.shape)


class Guess:
    """Takes the place of the environment's compressor: every step's outcome is the model's.

    :param model: of the damages
    :param choices: the environment's
    :param loss_per_divergence: ``-log(accuracy)`` per unit of divergence, for the observation
    """

    def __init__(self, model: DamageModel, choices: tuple[Choice, ...], loss_per_divergence: float = 0.02) -> None:
        self.model, self.loss_per_divergence = model, loss_per_divergence
        self.column = {choice: i for i, choice in enumerate(choices)}
        self.believe(model.weights())
        self.reset()

    def believe(self, weights: Array) -> None:
        """Play by these weights of the model."""
        self.undamaged = self.model.table(np.zeros(self.model.layers), weights)
        self.interplay = weights[3:6].tolist()

    def reset(self) -> None:
        """Back to the teacher."""
        self.layer, self.load = 0, 0.0

    def has_visited(self, choice: Choice, alpha: float) -> bool:
        """Everything, in its way."""
        return True

    def revisit(self, choice: Choice, alpha: float) -> Outcome:
        """Go on to what the model expects of a decision."""
        at = self.layer, self.column[choice]
        repaired, before = float(self.model.repaired[at]), self.load
        by_log, by_root, by_damage = self.interplay
        damage = float(self.undamaged[at]) + by_log * repaired * math.log1p(before)
        damage += by_root * math.sqrt(repaired * before) + by_damage * BIAS * before
        self.layer, self.load = self.layer + 1, max(0.0, before + damage)
        diverged = float(divergence(self.load))
        return Outcome(math.exp(-self.loss_per_divergence * diverged), True, diverged)


def practice_env(env: HSQEnv, model: DamageModel, loss_per_divergence: float = 0.02) -> HSQEnv:
    """An environment like ``env`` whose outcomes are the model's: an episode takes milliseconds.

    Observations, actions, masks, sizes and rewards are those of ``env``; only the measurement is guessed. It has no
    student.
    """
    practice = copy.copy(env)
    guess: Any = Guess(model, env.choices, loss_per_divergence)
    practice.compressor = guess
    practice.action_space = copy.deepcopy(env.action_space)
    practice.observation_space = copy.deepcopy(env.observation_space)
    practice.reset(seed=0)
    return practice
