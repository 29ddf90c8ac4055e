"""Searchers of whole plans as agents: ``predict`` as Stable-Baselines3 has it, one layer at a time."""

from typing import Any

import numpy as np

from agents.baselines.proposers import LearnsFromDivergences, Proposer
from agents.rollout import Transition
from agents.walk import Walk
from hsq_env.env import HSQEnv


class PlanAgent:
    """Asks a proposer for a plan at the start of each episode, follows it and tells what came of it.

    :param proposer: see ``Proposer``
    :param env: whose actions are spoken
    """

    def __init__(self, proposer: Proposer, env: HSQEnv) -> None:
        self.proposer, self.env = proposer, env
        self.finished = False  # nothing is left to try
        self._plan: list[int] = []
        self._walk = Walk()

    def start_episode(self) -> bool:
        """Ask for a plan; whether there is one."""
        proposed = self.proposer.propose()
        self.finished = proposed is None
        self._plan, self._walk = proposed or [], Walk()
        return not self.finished

    def predict(
        self,
        observation: Any,
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[Any, tuple[np.ndarray, ...] | None]:
        """The plan's action for the layer to come; ``state`` counts layers."""
        fresh = state is None or (episode_start is not None and bool(np.all(episode_start)))
        layer = 0 if fresh or state is None else int(state[0])
        if fresh and not self._plan:
            self.start_episode()
        return self.env.actions.encode(self._plan[layer], self.env.alpha), (np.array(layer + 1),)

    def observe(self, transition: Transition) -> None:
        """Note what a step did."""
        self._walk.add(self.env, transition[5])

    def gives_up(self) -> bool:
        """Whether the beginning of a plan was all that was to be played, or has shown enough."""
        if len(self._walk.choices) >= len(self._plan):
            return True
        proposer = self.proposer
        return isinstance(proposer, LearnsFromDivergences) and not proposer.worth_going_on(self._walk.divergences)

    def end_episode(self, info: dict[str, Any]) -> None:
        """Tell the proposer.

        :param info: of the episode's last step, with the ``score`` that ``KeepBest`` gives
        """
        whole = "plan" in info
        if whole:
            self.proposer.told(self._walk.choices, info.get("score", float("-inf")), info["ratio"])
        if isinstance(self.proposer, LearnsFromDivergences) and self._walk.finite:
            self.proposer.told_steps(self._walk.choices, self._walk.divergences, info["ratio"] if whole else None)
        self._plan = []
