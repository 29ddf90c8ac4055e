"""Dyna: between real episodes the agent practises in a learned model, and tries the plans that the model proposes.

Sutton 1990, "Integrated architectures for learning, planning, and reacting". Imagined steps go into a replay of their
own; real ones stay the only source of what is reported and the only thing that a budget of evaluations counts.
"""

from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from agents.baselines.planner import SurrogatePlanner
from agents.masked import ExploresAllowed
from agents.pretrain import TARGET_SYNC, margin_step, sync_target
from agents.rollout import Transition, executed_choices
from agents.surrogate import Guess, practice_env
from agents.walk import Walk
from detectors.progress import each
from hsq_env.env import HSQEnv

FIRST, EACH = 100, 8  # episodes of practice before the first real one, and after each


class Dyna(BaseCallback):
    """Keeps the model up to date, lets an off-policy agent practise in it and proposes plans to the environments.

    The model knows divergences alone: where the reward is of something else, it proposes plans and nobody practises.

    :param planner: the model
    :param first: practice episodes before the first real one
    :param each: practice episodes after each real one
    :param gradient_steps: per practice episode
    :param proposals: share of real episodes that are the model's, probes and plans, as long as it has any that are
        new; the agent decides the others, which end early where they cannot win any more
    """

    _trained = 0  # gradient steps
    gives_up_episodes = True  # so that steps do not tell how many episodes there have been

    def __init__(
        self,
        planner: SurrogatePlanner,
        first: int = FIRST,
        each: int = EACH,
        gradient_steps: int = 10,
        proposals: float = 0.9,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.planner, self.first, self.each, self.gradient_steps = planner, first, each, gradient_steps
        self.proposals = proposals
        self.practised = 0  # episodes
        self._rng = np.random.default_rng(seed)
        self._practice: HSQEnv | None = None
        self._replay: Any = None
        self._walks: list[Walk] = []

    def _on_training_start(self) -> None:
        workers = self.training_env.num_envs
        self._walks = [Walk() for _ in range(workers)]
        model: Any = self.model
        learns = isinstance(model, OffPolicyAlgorithm) and model.replay_buffer is not None
        if learns and self.planner.env.reward == "divergence":  # the model cannot tell what others look at
            self._practice = practice_env(self.planner.env, self.planner.model)
            self._replay = self._buffer(model, model.buffer_size)
            if isinstance(model, ExploresAllowed):  # SB3 sets it at the first real step
                model.exploration_rate = model.exploration_schedule(1.0)
            self._practise(self.first)
        for worker in range(workers):
            self._propose(worker)

    def draw_anew(self, seed: int, steps: list[Transition]) -> None:
        """Go on with other random numbers from a checkpoint after which there were more episodes.

        :param steps: of these
        """
        self._rng = np.random.default_rng(seed)
        self.planner.draw_anew(seed, [executed_choices(self.planner.env, i["plan"]) for *_, i in steps if "plan" in i])
        learn_from_rollouts(self.planner, steps)

    def on_new_workers(self) -> None:
        """The episodes that were going on are lost."""
        self._walks = [Walk() for _ in range(self.training_env.num_envs)]
        for worker in range(len(self._walks)):
            self._propose(worker)

    def _on_step(self) -> bool:
        for worker, info in enumerate(self.locals["infos"]):
            if info.get("evaluations_spent"):
                continue
            if info.get("worker_lost"):
                self._walks[worker] = Walk()
                self._propose(worker)
                continue
            self._walks[worker].add(self.planner.env, info)
            if not self.locals["dones"][worker]:
                continue
            _learn_from(self.planner, self._walks[worker], info)
            self._walks[worker] = Walk()
            if "plan" in info:
                self._practise(self.each)
            self._propose(worker)
        return True

    def _propose(self, worker: int) -> None:
        """Hand a worker a plan for the episode that it has just begun, or leave it to the agent."""
        target = self.training_env.get_attr("target_ratio", worker)[0]
        proposal = self.planner.next(target) if self._rng.random() < self.proposals else None
        if proposal is not None:
            self.training_env.env_method("follow", proposal.choices, proposal.ceilings, indices=worker)
        else:
            self.training_env.env_method("follow", [], self.planner.patience(target), indices=worker)

    def _practise(self, episodes: int) -> None:
        """Imagined episodes with the agent's exploration, and gradient steps on them.

        Temporal differences alone would make it forget the best plan known: every gradient step is followed by one that
        says again that this plan's actions lead (see ``PretrainOnReplay``).
        """
        env, model = self._practice, self.model
        if env is None or not isinstance(model, OffPolicyAlgorithm):
            return
        guess: Any = env.compressor
        assert isinstance(guess, Guess)
        guess.believe(self.planner.model.weights())
        known = self._known(model, env)
        for _ in each(range(episodes), "practice episode"):
            guess.believe(self.planner.model.weights(self._rng, 0.5))
            observation, _ = env.reset()
            ended = False
            while not ended:
                action = self._explored(observation)
                following, reward, ended, _, info = env.step(action)
                _store(self._replay, model, observation, following, info["executed_action"], reward, ended)
                observation = following
            self.practised += 1
            self._learn(known)
        self.logger.record("dyna/practised", self.practised)
        self.logger.record("dyna/steps", self.planner.model.steps)

    def _explored(self, observation: Any) -> Any:
        """The agent's action with its exploration, which for some agents is noise that SB3 adds elsewhere."""
        model: Any = self.model
        action, _ = model.predict(observation, deterministic=False)
        if model.action_noise is None:
            return action
        noise = np.asarray(model.action_noise()).reshape(-1, *action.shape)[0]  # a row for each worker
        return model.policy.unscale_action(np.clip(model.policy.scale_action(action) + noise, -1, 1))

    def _known(self, model: Any, env: HSQEnv) -> Any:
        """The best plans so far as steps in the model, which practice must not unlearn; None if there are none."""
        plans = {target: best.choices for target, best in self.planner.best.items() if target in env.budgets}
        if not plans or env.actions.alphas:  # which alphas a plan was played with the model does not know
            return None
        known = self._buffer(model, len(plans) * len(env.layers) + 1)  # never full
        for target, choices in plans.items():
            observation, _ = env.reset(options={"target_ratio": target})
            for choice in choices:
                following, reward, ended, _, info = env.step(env.actions.encode(choice, env.alpha))
                _store(known, model, observation, following, info["executed_action"], reward, ended)
                observation = following
        return known

    @staticmethod
    def _buffer(model: Any, size: int) -> Any:
        return type(model.replay_buffer)(
            size, model.observation_space, model.action_space, device=model.device, **model.replay_buffer_kwargs
        )

    def _learn(self, known: Any) -> None:
        model: Any = self.model
        real, model.replay_buffer = model.replay_buffer, self._replay
        try:
            for _ in range(self.gradient_steps):
                model.train(gradient_steps=1, batch_size=model.batch_size)
                if known is not None:
                    margin_step(model, known)
                self._trained += 1
                if self._trained % TARGET_SYNC == 0:
                    sync_target(model)
        finally:
            model.replay_buffer = real


def _store(
    buffer: Any, model: Any, observation: Any, following: Any, executed: Any, reward: float, ended: bool
) -> None:
    """One step into a buffer of one column."""
    stored = np.asarray(executed)
    stored = stored if stored.ndim == 0 else model.policy.scale_action(stored)
    row = (observation, following, stored, np.float64(reward), np.array(ended))
    buffer.add(*(np.asarray(value)[None] for value in row), [{}])


def learn_from_rollouts(planner: SurrogatePlanner, transitions: list[Transition]) -> None:
    """Tell the model of whole episodes that were played before the agent's training."""
    walk = Walk()
    for *_, info in transitions:
        walk.add(planner.env, info)
        if "plan" in info:
            _learn_from(planner, walk, info)
            walk = Walk()


def _learn_from(planner: SurrogatePlanner, walk: Walk, info: dict[str, Any]) -> None:
    """Tell the model of an episode or its beginning, unless the student diverged.

    :param info: of the last step
    """
    if walk.finite:
        ratio = info["ratio"] if "plan" in info else None
        planner.learn(walk.choices, walk.divergences, info["target_ratio"], ratio)
