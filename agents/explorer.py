"""Looking for plans with an agent of any kind: a baseline, one of Stable-Baselines3's, or one's own."""

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from agents.algorithms import ALGORITHMS, action_space_of, make_agent, stores_executed
from agents.baselines import BASELINES
from agents.baselines.planner import SurrogatePlanner
from agents.diagnostics import QValues, StepRegression
from agents.dyna import Dyna, learn_from_rollouts
from agents.evaluation_budget import EvaluationBudget
from agents.executed import end_episodes
from agents.keep_best import KeepBest
from agents.keeper import Keeper, Training, all_callbacks, learn
from agents.own_agent import agent_of, factory_of
from agents.plan_agent import PlanAgent
from agents.replay import fill_replay, load_policy, replay_of
from agents.rollout import (
    Policy,
    Transition,
    executed_choices,
    play,
    revisited,
    rollout,
    seed_replay,
    store,
    train_agent,
)
from agents.search_log import SearchLog
from agents.self_evaluation import SelfEvaluationCallback
from agents.shared_evaluations import SharedEvaluations
from agents.workers import Cluster, check_workers, steps_taken
from agents.workers import workers as make_workers
from agents.wrapping import Wrapping
from detectors.errors import InputError
from hsq_env.env import HSQEnv
from hsq_env.self_evaluation import SelfEvaluation
from hsq_env.standing import stand

SEEDS = 1009  # between those of workers that begin at different times
WARM_START = ("ilp_loads",)  # baselines whose plans seed the replay


@dataclass(frozen=True)
class Explorer:
    """How an agent looks for plans.

    :param algo: name of an agent or a baseline, or ``module:factory`` of one's own
    :param episodes: of the agent, each deciding every layer once, or of a baseline for each target; None for no limit
    :param evaluations: students that may be measured, rollouts of other plans included; None for no limit
    :param time_budget: seconds of the agent's training; None for no limit
    :param workers: environments side by side, each in a process of its own with one thread
    :param warm_start: baselines whose plans are rolled out into the replay before learning
    :param return_to_best: let episodes follow the best plan so far up to a random layer (see ``ReturnToBest``);
        on-policy agents never do
    :param surrogate: let the agent practise in a learned model and try the plans that it proposes (see ``Dyna``);
        without a budget there is none (see ``has_surrogate``)
    :param self_evaluation: tunes alpha and beta between windows of episodes, for searches without a hard target
    :param window: episodes in each
    :param arguments: of the agent, in place of its usual ones
    :param callbacks: for agents that learn through Stable-Baselines3
    :param cluster: where workers run, as actors of Ray; processes of this machine when None
    :param continue_from: folder of a run whose policy and replay the agent starts with
    """

    algo: str = "dqn"
    seed: int = 0
    episodes: int | None = 5
    evaluations: int | None = None
    time_budget: float | None = None
    workers: int = 1
    warm_start: Sequence[str] = WARM_START
    return_to_best: bool = True
    surrogate: bool = True
    self_evaluation: SelfEvaluation | None = None
    window: int = 5
    arguments: dict[str, Any] = field(default_factory=dict)
    callbacks: Sequence[BaseCallback] = ()
    continue_from: Path | None = None
    cluster: Cluster | None = None

    def check(self) -> None:
        """:raises InputError: for settings that no search can have"""
        check_workers(self.workers)
        if (self.apart and self.algo in BASELINES) or (self.workers > 1 and ":" in self.algo):
            flags = {"--workers": self.workers > 1, "--ray": self.cluster is not None}
            left_out = " and ".join(flag for flag, given in flags.items() if given)
            raise InputError(
                f"'{self.algo}' acts in one environment: leave out {left_out}, or choose an agent by name."
            )
        if ":" in self.algo:
            factory_of(self.algo)
        elif self.algo not in (*ALGORITHMS, *BASELINES):
            agents, baselines = ", ".join(ALGORITHMS), ", ".join(BASELINES)
            raise InputError(
                f"Unknown agent '{self.algo}': known are {agents}, the baselines {baselines}, and module:factory of "
                "your own (--algo)."
            )
        unknown = [name for name in self.warm_start if name not in BASELINES]
        if unknown:
            raise InputError(f"Unknown baseline '{unknown[0]}' to start from: known are {', '.join(BASELINES)}.")
        if self.seed < 0:
            raise InputError(f"The seed is {self.seed}: give 0 or more (--seed).")
        if self.episodes is not None and self.episodes < 0:
            raise InputError(f"There are no {self.episodes} episodes: give 0 or more (--episodes).")
        if self.time_budget is not None and not self.time_budget >= 0:
            raise InputError(f"Nothing can be found in {self.time_budget:g} seconds: give 0 or more (--time-budget).")
        if self.evaluations is not None and self.evaluations < 1:
            raise InputError(f"Nothing can be found in {self.evaluations} evaluations: give --evaluations 1 or more.")

    def action_space(self) -> str:
        """The action space that the agent needs."""
        if self.algo in BASELINES or ":" in self.algo:
            return "discrete"
        return action_space_of(self.algo)

    @property
    def as_published(self) -> bool:
        """Whether the agent is one that learns from its own episodes alone."""
        return self.algo in ALGORITHMS and ALGORITHMS[self.algo].as_published

    @property
    def begins_with(self) -> Sequence[str]:
        """Baselines whose plans are rolled out first."""
        return () if self.as_published or self.algo in BASELINES else self.warm_start

    @property
    def returns(self) -> bool:
        """Whether episodes follow the best plan in their beginning."""
        own = self.algo in ALGORITHMS and not self.as_published
        return self.return_to_best and own and stores_executed(self.algo)

    def has_surrogate(self, env: HSQEnv) -> bool:
        """Whether a model learns beside the agent: of one that learns from what others decided, and under a budget.

        It needs a plan to start from. Without a budget of bytes or time it could not say which plans are good: it knows
        divergences, and not what alpha and beta, or targets of the self-evaluation, make of them.
        """
        wanted = self.surrogate and self.returns and bool(self.begins_with)
        bounded = all(math.isfinite(budget.limit) for budget in env.budgets.values())
        return wanted and bounded and self.merit is None

    def run(
        self,
        env: HSQEnv,
        log: SearchLog,
        logger: Callable[[], Logger] | None = None,
        on_agent: Callable[[Any], object] = lambda agent: None,
        keeper: Keeper | None = None,
        begun: Training | None = None,
    ) -> Any:
        """Search.

        :param log: takes every finished episode
        :param logger: makes what agents of Stable-Baselines3 log to; their own when None
        :param on_agent: called with the agent before it begins
        :param keeper: of checkpoints, which agents of Stable-Baselines3 have
        :param begun: a training to go on with
        :return: the agent
        """
        env.reset(seed=self.seed)
        try:
            if self.algo in BASELINES:
                return self._play_baseline(env, log)
            if ":" not in self.algo:
                return self._train(env, log, logger, None, on_agent, keeper, begun)
            made = agent_of(self.algo, env)
            if isinstance(made, BaseAlgorithm):
                return self._train(env, log, logger, made, on_agent, keeper, begun)
            on_agent(made)
            self._play(made, env, log, self.evaluations, self.time_budget)
            return made
        finally:
            if not self.apart or self.algo not in ALGORITHMS:
                log.count(env.steps_taken)

    def _play(
        self,
        policy: Policy,
        env: HSQEnv,
        log: SearchLog,
        evaluations: int | None,
        seconds: float | None,
        target: float | None = None,
    ) -> None:
        deadline = None if seconds is None else time.monotonic() + seconds
        budget = EvaluationBudget(KeepBest(env, self.merit), evaluations)
        play(policy, budget, self.algo, log, self.episodes, deadline, target, evaluations)

    def _play_baseline(self, env: HSQEnv, log: SearchLog) -> PlanAgent:
        """A search of its own for every target, which share the evaluations and the seconds."""
        targets, left = list(env.budgets), self.time_budget
        share = None if self.evaluations is None else self.evaluations // len(targets)
        for number, target in enumerate(targets):
            env.target_ratio = target
            agent = PlanAgent(BASELINES[self.algo](env, self.seed), env)  # which may measure for long
            begun = time.monotonic()
            self._play(agent, env, log, share, None if left is None else left / (len(targets) - number), target)
            left = None if left is None else left - (time.monotonic() - begun)
        return agent

    def _train(
        self,
        env: HSQEnv,
        log: SearchLog,
        logger: Callable[[], Logger] | None,
        made: BaseAlgorithm | None,
        on_agent: Callable[[Any], object],
        keeper: Keeper | None,
        begun: Training | None,
    ) -> BaseAlgorithm:
        if begun is not None:
            return self._go_on(env, log, logger, begun, on_agent)
        seeds = self._rollouts(env, log)
        left = None if self.evaluations is None else max(0, self.evaluations - env.evaluations)
        with self._side_by_side(env, log, left) as trained_on:
            agent = self._agent(trained_on) if made is None else made
            if made is not None:
                agent.set_env(trained_on)
            on_agent(agent)
            if logger is not None:
                agent.set_logger(logger())
            shared = [SharedEvaluations(left)] if self.apart and left is not None else []
            callbacks = [
                *shared,
                *seed_replay(agent, seeds),
                *self._dyna(env, seeds),
                *self._callbacks(env, seeds, log),
            ]
            if left != 0:
                train_agent(
                    agent, len(env.layers), self.algo, log, self.episodes, self.time_budget, callbacks, keeper, left
                )
            self._count(env, trained_on, log)
        return agent

    def _go_on(
        self,
        env: HSQEnv,
        log: SearchLog,
        logger: Callable[[], Logger] | None,
        begun: Training,
        on_agent: Callable[[Any], object],
    ) -> BaseAlgorithm:
        """Go on with a training: with one worker as if it had never stopped, with several from their next episodes."""
        callbacks = begun.callbacks
        agent = callbacks.model
        stand(env, begun.standing)
        for steps in begun.spent:
            log.count(steps)
        lost = revisited(env, begun.lost)
        spent = env.evaluations + log.steps - log.visited_steps
        left = None if self.evaluations is None else max(0, self.evaluations - spent)
        with contextlib.ExitStack() as stack:
            if self.apart:
                agent.set_env(stack.enter_context(self._side_by_side(env, log, left)))
                _teach(begun, lost, self.seed + SEEDS * (1 + self._played(log)))
            on_agent(agent)
            if logger is not None:
                agent.set_logger(logger())
            callbacks.resumed = begun
            for callback in all_callbacks(callbacks):
                if isinstance(callback, SharedEvaluations) and left is not None:
                    callback.left = left
            if left != 0:
                learn(agent, begun.total, callbacks)
            self._count(env, agent.env, log)
        return agent

    def _side_by_side(
        self, env: HSQEnv, log: SearchLog, left: int | None
    ) -> AbstractContextManager[gym.Env[Any, Any] | VecEnv]:
        """What the agent trains on.

        :param left: evaluations, which workers share
        """
        share = None if left is None else left // self.workers
        return make_workers(env, self.workers, lambda: self._wrapping(env, log, share), self.cluster, log.say)

    @property
    def apart(self) -> bool:
        """Whether workers are processes of their own."""
        return self.workers > 1 or self.cluster is not None

    def _count(self, env: HSQEnv, trained_on: gym.Env[Any, Any] | VecEnv | None, log: SearchLog) -> None:
        if self.apart and trained_on is not None:
            for steps in [*steps_taken(trained_on), env.steps_taken]:  # the rollouts were the parent's
                log.count(steps)

    @property
    def merit(self) -> Callable[[float, float], float] | None:
        """What makes plans comparable where the self-evaluation has targets: its MSE of accuracy and ratio."""
        loop = self.self_evaluation
        return None if loop is None else loop.merit_of

    def _callbacks(self, env: HSQEnv, seeds: list[Transition], log: SearchLog) -> list[BaseCallback]:
        """Diagnostics, the self-evaluation and one's own."""
        states = np.array([transition[0] for transition in seeds], dtype=np.float32)
        values, regression = QValues(states, len(env.layers)), StepRegression(env)
        made: list[BaseCallback] = [values, regression]
        log.notes["q_values"] = values.history
        log.notes["regression"] = regression.to_json
        if self.self_evaluation is not None:
            made.append(SelfEvaluationCallback(self.self_evaluation, self.window))
            log.notes["self_evaluation"] = made[-1].adjustments  # type: ignore[attr-defined]
        return [*made, *self.callbacks]

    def _dyna(self, env: HSQEnv, seeds: list[Transition]) -> list[BaseCallback]:
        """The surrogate, where there is one."""
        if not (self.has_surrogate(env) and seeds):
            return []
        planner = SurrogatePlanner(env, self.seed, repaired=bool({"ilp_repaired", "ilp_loads"} & set(self.warm_start)))
        learn_from_rollouts(planner, seeds)
        return [Dyna(planner, seed=self.seed)]

    def _agent(self, env: gym.Env[Any, Any] | VecEnv) -> BaseAlgorithm:
        if self.continue_from is None:
            return make_agent(self.algo, env, self.seed, **self.arguments)
        agent = make_agent(self.algo, env, self.seed, **self.arguments)
        load_policy(agent, self.continue_from / "policy.zip")
        buffer, kept = replay_of(agent), self.continue_from / "replay.npz"
        if buffer is not None and kept.is_file():
            fill_replay(buffer, kept)
        return agent

    def _rollouts(self, env: HSQEnv, log: SearchLog) -> list[Transition]:
        """The cheap baselines' plans, for every target."""
        budget = EvaluationBudget(KeepBest(env, self.merit), self.evaluations)
        transitions: list[Transition] = []
        for target in env.budgets:
            env.target_ratio = target
            seen: list[list[int]] = []
            for name in self.begins_with:
                choices = BASELINES[name](env, self.seed).propose()
                if choices is not None and choices not in seen:
                    seen.append(choices)
                    transitions += rollout(budget, choices, name, log, target)
        return transitions

    def _wrapping(self, env: HSQEnv, log: SearchLog, evaluations: int | None) -> Wrapping:
        """What is put around the environments of workers that begin now."""
        best = {target: episode for target in env.budgets for episode in log.best_plans(1, target)}
        known = {target: (executed_choices(env, e.plan), log.score(e)) for target, e in best.items()}
        return Wrapping(known, evaluations, self.merit, self.returns, self.seed + SEEDS * self._played(log))

    def _played(self, log: SearchLog) -> int:
        """Finished episodes of the agent."""
        return sum(episode.source == self.algo for episode in log.episodes)


def _teach(begun: Training, steps: list[Transition], seed: int) -> None:
    """Let an agent and its model know the steps of lost episodes, and draw others from now on."""
    agent = begun.callbacks.model
    agent.set_random_seed(seed)
    buffer = replay_of(agent)
    if buffer is not None and buffer.size():
        end_episodes(buffer, range(buffer.n_envs))
    if buffer is not None and isinstance(agent, OffPolicyAlgorithm):
        store(agent, steps, buffer)
    for callback in all_callbacks(begun.callbacks):
        if hasattr(callback, "draw_anew"):
            callback.draw_anew(seed, steps)
