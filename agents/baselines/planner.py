"""Plans from a learned model of damages: an integer program over what the model believes, drawn from its posterior."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agents.baselines.plans import byte_limit, integer_program, warm_starts
from agents.surrogate import DamageModel
from hsq_env.env import HSQEnv

SPREAD = 0.5  # of the draws, in posterior deviations
WHOLE_EVERY = 4  # a plan from the first layer on; the others keep the best plan's beginning, which costs nothing
FLOOR = 1e-6  # of the repaired sensitivities, added so that damages believed to be none are not all alike
JITTER = 0.3  # logarithmic, of damages where the model would only repeat the best plan


@dataclass(frozen=True)
class Best:
    """A measured plan.

    :param choices: index per layer
    :param before: divergence before each layer, (layers,)
    :param divergence: at the end
    """

    choices: list[int]
    before: NDArray[np.float64]
    divergence: float


class PlannerSearch:
    """The planner as a search of its own, without any agent: what the learned model is worth alone.

    Begins with the integer programs' plans, then proposes from the model and learns from every measured step.
    """

    def __init__(self, env: HSQEnv, seed: int) -> None:
        self._planner = SurrogatePlanner(env, seed)
        self._starts = warm_starts(env)

    def propose(self) -> list[int] | None:
        """See ``Proposer``."""
        return self._starts.pop(0) if self._starts else self._planner.propose(self._planner.env.target_ratio)

    def told(self, choices: list[int], score: float, ratio: float) -> None:
        """Everything is learned from the steps."""

    def told_steps(self, choices: list[int], divergences: list[float], ratio: float) -> None:
        """See ``LearnsFromDivergences``."""
        self._planner.learn(choices, divergences, self._planner.env.target_ratio, ratio)


class SurrogatePlanner:
    """Learns from measured steps and proposes plans (Thompson sampling with an integer program as oracle).

    :param env: sizes, budgets, sensitivities
    """

    def __init__(self, env: HSQEnv, seed: int = 0) -> None:
        self.env = env
        self.model = DamageModel(env.sensitivities, env.repaired_sensitivities)
        self.best: dict[float | None, Best] = {}
        self._rng = np.random.default_rng(seed)
        self._proposed = 0
        self._seen: set[tuple[int, ...]] = set()  # prefixes, lest a step counts twice

    def learn(self, choices: list[int], divergences: list[float], target: float | None, ratio: float) -> None:
        """Take note of an episode.

        :param choices: executed, per layer
        :param divergences: after each layer
        :param target: that the episode had; a plan that reaches the ratio of another counts for that one too
        """
        before = np.r_[0.0, divergences[:-1]]
        new = [k for k in range(len(choices)) if tuple(choices[: k + 1]) not in self._seen]
        self._seen.update(tuple(choices[: k + 1]) for k in new)
        at = np.array(new, dtype=np.int64)
        self.model.add(at, np.array(choices)[at], before[at], np.array(divergences)[at])
        for aim in self.env.budgets:
            known = self.best.get(aim)
            reaches = aim == target or (aim is not None and ratio >= aim)
            if reaches and np.isfinite(divergences[-1]) and (known is None or divergences[-1] < known.divergence):
                self.best[aim] = Best(list(choices), before, divergences[-1])

    def propose(self, target: float | None) -> list[int] | None:
        """A plan for the environment's budget that may be better than the best; None before any was measured."""
        best = self.best.get(target)
        if best is None:
            return None
        env, layers = self.env, len(best.choices)
        self._proposed += 1
        start = 0 if self._proposed % WHOLE_EVERY == 0 else self._late_layer(layers)
        costs = self.model.table(best.before, self.model.weights(self._rng, SPREAD)).clip(0.0)
        costs += FLOOR * self.model.repaired
        limit = byte_limit(env, target) - float(sum(env.sizes[k, best.choices[k]] for k in range(start)))
        for jitter in (0.0, JITTER, 3 * JITTER):
            noisy = costs * np.exp(jitter * self._rng.standard_normal(costs.shape))
            rest = integer_program(noisy[start:], env.sizes[start:], limit)
            plan = [*best.choices[:start], *(int(i) for i in rest)]
            if plan != best.choices:
                return plan
        return plan

    def _late_layer(self, layers: int) -> int:
        """Drawn with a probability that grows linearly: leaving late costs few measurements."""
        weights = np.arange(1, layers + 1)
        return int(self._rng.choice(layers, p=weights / weights.sum()))
