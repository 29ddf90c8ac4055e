"""Searchers of whole plans: each proposes a plan, is told what it scored, and proposes the next."""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import numpy as np
import optuna

from agents.baselines.planner import PlannerSearch, loads_choices
from agents.baselines.plans import (
    cost_limit,
    greedy_choices,
    integer_program_choices,
    random_choices,
    uniform_choices,
    warm_starts,
)
from hsq_env.env import HSQEnv


class Proposer(Protocol):
    """What ``PlanAgent`` turns into an agent."""

    def propose(self) -> list[int] | None:
        """The next plan, as the index of the choice per layer; None if there is nothing left to try.

        A shorter list is the beginning of a plan, after which the episode is given up.
        """

    def told(self, choices: list[int], score: float, ratio: float) -> None:
        """What came of a plan.

        :param choices: that were executed, which the budget may have made others than the proposed ones
        :param score: of ``KeepBest``, higher is better; negative infinity for a diverged student
        :param ratio: teacher bytes over student bytes
        """


@runtime_checkable
class LearnsFromDivergences(Protocol):
    """A proposer with this method is told of every step of its plan."""

    def worth_going_on(self, divergences: list[float]) -> bool:
        """Whether a plan whose first steps did this should be played to its end."""

    def told_steps(self, choices: list[int], divergences: list[float], ratio: float | None) -> None:
        """The executed choices and the divergence after each, only where all are numbers; the ratio of whole plans."""


class Listed:
    """Plans that are known beforehand, in turn."""

    def __init__(self, plans: list[list[int]]) -> None:
        self._plans = list(plans)

    def propose(self) -> list[int] | None:
        """See ``Proposer``."""
        return self._plans.pop(0) if self._plans else None

    def told(self, choices: list[int], score: float, ratio: float) -> None:
        """Nothing is learned."""


class Random:
    """Plans within the budget, drawn at random."""

    def __init__(self, env: HSQEnv, seed: int) -> None:
        self._env, self._rng = env, np.random.default_rng(seed)

    def propose(self) -> list[int]:
        """See ``Proposer``."""
        return random_choices(self._env, self._rng)

    def told(self, choices: list[int], score: float, ratio: float) -> None:
        """Nothing is learned."""


class LocalSearch:
    """Hill climbing from the better integer program's plan.

    A neighbour gives two layers other choices at random so that the plan still fits; it is kept if it scores higher.
    """

    attempts = 10_000  # at a neighbour that fits

    def __init__(self, env: HSQEnv, seed: int) -> None:
        self._env, self._rng = env, np.random.default_rng(seed)
        self._starts = warm_starts(env)
        self.best: list[int] = self._starts[0]
        self.score = float("-inf")

    def propose(self) -> list[int] | None:
        """See ``Proposer``."""
        return self._starts.pop(0) if self._starts else self._neighbour()

    def told(self, choices: list[int], score: float, ratio: float) -> None:
        """Climb."""
        if score > self.score:
            self.best, self.score = list(choices), score

    def _neighbour(self) -> list[int] | None:
        """None where nothing else fits."""
        sizes, limit = self._env.costs, cost_limit(self._env)
        rows = np.arange(len(self.best))
        for _ in range(self.attempts):
            chosen = np.array(self.best)
            layers = self._rng.choice(len(chosen), size=min(2, len(chosen)), replace=False)
            chosen[layers] = self._rng.integers(sizes.shape[1], size=len(layers))
            if (chosen != self.best).any() and sizes[rows, chosen].sum() <= limit:
                return [int(i) for i in chosen]
        return None


class OptunaSearch:
    """One of Optuna's samplers over one categorical parameter per layer, begun with the integer programs' plans.

    :param sampler: e.g. ``optuna.samplers.TPESampler``
    :param objectives: 1 for accuracy alone, 2 for accuracy and ratio
    """

    def __init__(self, env: HSQEnv, sampler: optuna.samplers.BaseSampler, objectives: int) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._objectives = objectives
        self._study = optuna.create_study(sampler=sampler, directions=["maximize"] * objectives)
        grid = optuna.distributions.CategoricalDistribution(range(len(env.choices)))
        self._space: dict[str, optuna.distributions.BaseDistribution] = {
            f"{index:03d}": grid for index in range(len(env.layers))
        }
        self._trial: optuna.Trial | None = None
        for plan in warm_starts(env):
            self._study.enqueue_trial(dict(zip(self._space, plan, strict=True)))

    def propose(self) -> list[int]:
        """See ``Proposer``."""
        self._trial = self._study.ask(self._space)
        return [self._trial.params[name] for name in self._space]

    def told(self, choices: list[int], score: float, ratio: float) -> None:
        """Tell the study what the budget made of its trial."""
        assert self._trial is not None
        values = [score, ratio][: self._objectives]
        if not np.isfinite(score):
            self._study.tell(self._trial, state=optuna.trial.TrialState.FAIL)
        else:
            self._study.tell(self._trial, values if self._objectives > 1 else score)


def _uniform(env: HSQEnv, seed: int) -> Proposer:
    return Listed(uniform_choices(env))


def _greedy(env: HSQEnv, seed: int) -> Proposer:
    return Listed([greedy_choices(env.sensitivities, env.costs, cost_limit(env))])


def _ilp(env: HSQEnv, seed: int) -> Proposer:
    return Listed([integer_program_choices(env)])


def _ilp_repaired(env: HSQEnv, seed: int) -> Proposer:
    return Listed([integer_program_choices(env, env.repaired_sensitivities)])


def _ilp_loads(env: HSQEnv, seed: int) -> Proposer:
    return Listed([loads_choices(env)])


def _tpe(env: HSQEnv, seed: int) -> Proposer:
    return OptunaSearch(env, optuna.samplers.TPESampler(seed=seed), 1)


def _nsga2(env: HSQEnv, seed: int) -> Proposer:
    return OptunaSearch(env, optuna.samplers.NSGAIISampler(seed=seed, population_size=16), 2)


BASELINES: dict[str, Callable[[HSQEnv, int], Proposer]] = {
    "uniform": _uniform,
    "random": Random,
    "greedy": _greedy,
    "ilp": _ilp,
    "ilp_repaired": _ilp_repaired,
    "ilp_loads": _ilp_loads,
    "tpe": _tpe,
    "nsga2": _nsga2,
    "local": LocalSearch,
    "planner": PlannerSearch,
}
