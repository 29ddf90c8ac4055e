"""Plans from a learned model of damages: probes where they tell most, then an integer program over what is believed.

A probe returns to the best plan up to a layer, which costs nothing, takes one other choice there and looks at what it
does, which costs one evaluation; nothing of the rest is measured. So the model learns what every promising choice does
after the choices that were made before it and after the repair, which no table of single layers can tell.

A plan is given up as soon as it cannot become the best any more. It mostly fails at one choice that does more harm than
expected: the program then looks for another end for what was good of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agents.baselines.plans import cost_limit, integer_program, integer_program_choices
from agents.surrogate import DamageModel, divergence, load
from hsq_env.env import HSQEnv

PROBES = 24  # in a round
LAYER_PROBES = 2  # of these in a layer at most
STARTS = (0.7, 0.45, 0.0)  # of a round's plans: the share of layers that stay as in the best plan, late changes first
SLACK = 0.015  # share of the best load that a plan may lie above what the model expects before it is given up
PATIENCE = 0.15  # the same for an episode of the agent's
FLOOR = 1e-6  # of the repaired sensitivities, added so that damages believed to be none are not all alike
CHANGE_PRICES = (-3.0, -1.7)  # powers of ten, as a share of the best plan's load
DRAWS = (0.5, 1.0)  # spreads, in posterior deviations, of what is believed in further attempts
LAST_ROUNDS = 5  # without anything new, after which the planner alone gives up
MARGIN = 0.02  # share of the bytes by which the price of a byte is found
OPTIMISM = 0.5  # posterior deviations that a choice is given credit for when probes are chosen


def loads_choices(env: HSQEnv) -> list[int]:
    """The plan that the model holds best before anything is measured: the integer program's over loads.

    It costs no more than that over the repaired sensitivities themselves and reckons that damages add up to less than
    their sum.
    """
    return integer_program_choices(env, load(env.repaired_sensitivities))


@dataclass(frozen=True)
class Proposal:
    """What to play next.

    :param choices: a plan, or its beginning, after which the episode is given up
    :param ceilings: divergence after each layer above which the plan cannot become the best any more, as far as the
        model knows
    """

    choices: list[int]
    ceilings: list[float]


@dataclass(frozen=True)
class Best:
    """A measured plan.

    :param choices: index per layer
    :param before: load before each layer, (layers,)
    :param load: at the end
    """

    choices: list[int]
    before: NDArray[np.float64]
    load: float

    @property
    def damages(self) -> NDArray[np.float64]:
        """What every layer added, (layers,)."""
        return np.asarray(np.diff(np.r_[self.before, self.load]))


class SurrogatePlanner:
    """Learns from measured steps and says what to measure next.

    :param env: sizes, budgets, sensitivities
    :param repaired: begin with the sensitivities after a repair too, which cost a step per choice to measure
    """

    def __init__(self, env: HSQEnv, seed: int = 0, repaired: bool = True) -> None:
        self.env = env
        self.model = DamageModel(env.sensitivities, env.repaired_sensitivities if repaired else env.sensitivities)
        self.best: dict[float | None, Best] = {}
        self._rng = np.random.default_rng(seed)
        self._seen: dict[tuple[int, ...], float] = {}  # divergences after prefixes, lest a step counts twice
        self._rounds: dict[float | None, list[list[int] | float]] = {}  # probes, and shares of layers of plans
        self._tried: set[tuple[int, ...]] = set()
        self._played: dict[float | None, list[int]] = {}  # the last plan that was proposed
        self._good: dict[float | None, list[int]] = {}  # of a plan that was given up: all but its last step

    def draw_anew(self, seed: int, tried: Sequence[Sequence[int]]) -> None:
        """Other random numbers from here on, and none of the plans that were tried."""
        self._rng = np.random.default_rng(seed)
        self._tried.update(map(tuple, tried))

    def learn(self, choices: list[int], divergences: list[float], target: float | None, ratio: float | None) -> None:
        """Take note of an episode or of its beginning.

        :param choices: executed, per layer
        :param divergences: after each layer
        :param target: that the episode had; a plan that reaches the ratio of another counts for that one too
        :param ratio: of a finished plan; None for one that was given up
        """
        loads = load(divergences)
        before = np.r_[0.0, loads[:-1]]
        new = [k for k in range(len(choices)) if tuple(choices[: k + 1]) not in self._seen]
        self._seen.update((tuple(choices[: k + 1]), divergences[k]) for k in new)
        at = np.array(new, dtype=np.int64)
        self.model.add(at, np.array(choices)[at], before[at], loads[at])
        if ratio is None or len(choices) < len(self.env.layers):
            if new and choices == self._played.get(target, [])[: len(choices)]:
                self._good[target] = choices[:-1]
            return
        for aim in self.env.budgets:
            known = self.best.get(aim)
            reaches = aim == target or (aim is not None and ratio >= aim)
            if reaches and (known is None or loads[-1] < known.load):
                self.best[aim] = Best(list(choices), before, float(loads[-1]))
                self._rounds.pop(aim, None)  # they belonged to the plan before

    def next(self, target: float | None) -> Proposal | None:
        """What to play: another end of a plan that was given up, a probe, which is shorter than a plan, or a plan.

        :return: None before any plan was measured, and where nothing new comes to mind
        """
        if target not in self.best:
            return None
        if target in self._good:
            proposal = self._plan(target, self._good.pop(target))
            if proposal is not None:
                return proposal
        if not self._rounds.get(target):
            self._rounds[target] = [*self.probes(target, PROBES), *STARTS]
        while self._rounds[target]:
            upcoming = self._rounds[target].pop(0)
            if isinstance(upcoming, list):
                return Proposal(upcoming, [np.inf] * len(upcoming))
            kept = round(upcoming * len(self.env.layers))
            proposal = self._plan(target, self.best[target].choices[:kept])
            if proposal is not None:
                return proposal
        return None

    def _plan(self, target: float | None, beginning: list[int]) -> Proposal | None:
        """A plan that is expected to become the best.

        :param beginning: its first choices, which were measured
        """
        plan = self.propose(target, beginning)
        if plan is None:
            return None
        best, start = self.best[target], len(beginning)
        to_come = self._damages(best, beginning)[range(start, len(plan)), plan[start:]]
        if self._load_after(beginning) + to_come.sum() >= best.load:
            return None
        ceilings = [np.inf] * start + self._ceilings(best, plan)[start:]
        proposal = Proposal(plan, ceilings)
        if self._hopeless(proposal):
            return None
        self._played[target] = plan
        return proposal

    def _load_after(self, beginning: Sequence[int]) -> float:
        return float(load(self._seen[tuple(beginning)])) if beginning else 0.0

    def _hopeless(self, proposal: Proposal) -> bool:
        """Whether a plan is known to end before anything new comes up in it."""
        known = (self._seen.get(tuple(proposal.choices[: k + 1])) for k in range(len(proposal.choices)))
        return any(d is not None and d > c for d, c in zip(known, proposal.ceilings, strict=True))

    def patience(self, target: float | None) -> list[float]:
        """Ceilings for an episode whose choices nobody knows yet; none before any plan was measured."""
        best = self.best.get(target)
        return [] if best is None else self._ceilings(best, best.choices, PATIENCE)

    def _ceilings(self, best: Best, plan: list[int], slack: float = SLACK) -> list[float]:
        """Where the best plan stood, and what may be lost there if the layers to come do what the model expects."""
        differences = self._damages(best)[np.arange(len(plan)), plan] - best.damages
        to_come = np.r_[np.cumsum(differences[::-1])[::-1][1:], 0.0]
        stood = np.r_[best.before[1:], best.load]
        return [float(x) for x in divergence(stood + best.load * slack - to_come)]

    def probes(self, target: float | None, count: int) -> list[list[int]]:
        """The choices that most likely improve the best plan, each as the plan's beginning with that choice last.

        A choice is judged by its damage, less the uncertainty's credit, and its bytes at the price that the budget
        puts on them.
        """
        best, sizes = self.best[target], self.env.costs
        costs = self._costs(best)
        rows = np.arange(len(best.choices))
        worth = costs + self._price_of_a_byte(costs, target) * sizes
        gain = worth[rows, best.choices][:, None] - worth + OPTIMISM * self.model.deviations(best.before)
        gain[rows, best.choices] = -np.inf
        for k in range(len(rows)):
            for c in range(sizes.shape[1]):
                if (*best.choices[:k], c) in self._seen:
                    gain[k, c] = -np.inf
        ranks = np.argsort(np.argsort(-gain, axis=1, kind="stable"), axis=1, kind="stable")
        gain[ranks >= LAYER_PROBES] = -np.inf
        order = np.argsort(-gain, axis=None, kind="stable")[:count]
        places = sorted(divmod(int(i), sizes.shape[1]) for i in order if gain.flat[i] > 0)
        return [[*best.choices[:k], c] for k, c in places if self._fits(best.choices[:k], k, c, target)]

    def _fits(self, before: list[int], layer: int, choice: int, target: float | None) -> bool:
        spent = sum(int(self.env.costs[k, c]) for k, c in enumerate(before))
        return bool(self.env.budgets[target].mask(layer, spent)[choice])

    def propose(self, target: float | None, beginning: Sequence[int] = ()) -> list[int] | None:
        """The integer program's plan over what the model believes after the best plan's choices.

        A change from the best plan has to promise something, how much is drawn anew for every proposal: without a
        price, a plan would gather all the choices that the model happens to be too hopeful about. Where that leads to
        a plan that was tried before, beliefs are drawn from what the model holds possible (Thompson 1933).

        :param beginning: its first choices, which were measured
        :return: None if nothing new was found
        """
        best, sizes, start = self.best[target], self.env.costs, len(beginning)
        limit = cost_limit(self.env, target) - float(sum(sizes[k, c] for k, c in enumerate(beginning)))
        if sizes[start:].min(axis=1).sum() > limit:  # without a budget, a plan may begin with more than plans take
            return None
        for spread in (0.0, *DRAWS):
            costs = self._costs(best, beginning, self.model.weights(self._rng, spread))
            prices = np.full(costs.shape, best.load * 10.0 ** self._rng.uniform(*CHANGE_PRICES))
            prices[np.arange(len(costs)), best.choices] = 0.0
            rest = integer_program((costs + prices)[start:], sizes[start:], limit)
            plan = [*beginning, *(int(i) for i in rest)]
            if tuple(plan) not in self._tried:
                self._tried.add(tuple(plan))
                return plan
        return None

    def _damages(
        self, best: Best, beginning: Sequence[int] = (), weights: NDArray[np.float64] | None = None
    ) -> NDArray[np.float64]:
        """Of every choice after the best plan's choices; its own as they were measured.

        :param beginning: choices in place of the best plan's first ones
        """
        other = self._load_after(beginning) - best.before[len(beginning)] if beginning else 0.0
        damages = self.model.table(np.maximum(best.before + other, 0.0), weights)
        damages[np.arange(len(damages)), best.choices] = best.damages
        return damages

    def _costs(
        self, best: Best, beginning: Sequence[int] = (), weights: NDArray[np.float64] | None = None
    ) -> NDArray[np.float64]:
        """The same, from 0 in every layer."""
        costs = self._damages(best, beginning, weights)
        return np.asarray(costs - costs.min(axis=1, keepdims=True) + FLOOR * self.model.repaired)

    def _price_of_a_byte(self, costs: NDArray[np.float64], target: float | None) -> float:
        """What the plan would gain from a byte more."""
        limit, sizes = cost_limit(self.env, target), self.env.costs
        least = float(sizes.min(axis=1).sum())
        ends = max(least, limit * (1 - MARGIN)), limit * (1 + MARGIN)
        rows = np.arange(len(costs))
        low, high = (costs[rows, integer_program(costs, sizes, end)].sum() for end in ends)
        return max(0.0, float(low - high)) / (ends[1] - ends[0])


class PlannerSearch:
    """The planner as a search of its own, without any agent: what the learned model is worth alone.

    Begins with the integer program's plan over loads, then probes and proposes.
    """

    def __init__(self, env: HSQEnv, seed: int) -> None:
        self._planner = SurrogatePlanner(env, seed)
        self._starts = [loads_choices(env)]
        self._ceilings: list[float] = []

    def propose(self) -> list[int] | None:
        """See ``Proposer``."""
        self._ceilings = []
        if self._starts:
            return self._starts.pop(0)
        rounds = (self._planner.next(self._planner.env.target_ratio) for _ in range(LAST_ROUNDS))
        proposal = next((p for p in rounds if p is not None), None)
        if proposal is None:
            return None
        self._ceilings = proposal.ceilings
        return proposal.choices

    def worth_going_on(self, divergences: list[float]) -> bool:
        """See ``LearnsFromDivergences``."""
        return not self._ceilings or divergences[-1] <= self._ceilings[len(divergences) - 1]

    def told(self, choices: list[int], score: float, ratio: float) -> None:
        """Everything is learned from the steps."""

    def told_steps(self, choices: list[int], divergences: list[float], ratio: float | None) -> None:
        """See ``LearnsFromDivergences``."""
        self._planner.learn(choices, divergences, self._planner.env.target_ratio, ratio)
