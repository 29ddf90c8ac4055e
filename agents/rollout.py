"""The part of a search that looks for plans: rollouts that seed the replay, and agents of every kind at work."""

import math
import time
from collections.abc import Callable, Iterable
from typing import Any, Protocol, runtime_checkable

import gymnasium as gym
import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from agents.callbacks import EpisodeRecorder
from agents.episode import Episode
from agents.keeper import Callbacks, Keeper, learn
from agents.masked import ExploresAllowed
from agents.pretrain import PretrainOnReplay
from agents.search_log import SearchLog
from agents.training_progress import TrainingProgress
from detectors.progress import each
from hsq_env.choices import Plan
from hsq_env.env import HSQEnv

UNLIMITED_EPISODES = 1_000_000
Transition = tuple[Any, Any, Any, float, bool, dict[str, Any]]  # observation, next, action, reward, done, info


@runtime_checkable
class Policy(Protocol):
    """Anything that can choose: Stable-Baselines3's signature."""

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[Any, Any]:
        """An action, and the state to be given back with the next observation."""


@runtime_checkable
class LearnsFromSteps(Protocol):
    """A policy with this method is told of every step."""

    def observe(self, transition: Transition) -> None:
        """Observation, next observation, executed action, reward, whether the episode ended, info."""


@runtime_checkable
class SearchesPlans(Protocol):
    """A policy with these methods is asked before and told after every episode."""

    def start_episode(self) -> bool:
        """Whether there is anything left to try."""

    def gives_up(self) -> bool:
        """Whether the present episode should end here."""

    def end_episode(self, info: dict[str, Any]) -> None:
        """What came of it: the info of the last step, without a ``plan`` if the episode was given up."""


def executed_choices(env: HSQEnv, plan: Plan) -> list[int]:
    """A plan as the index of the choice per layer."""
    return [env.choices.index(choice) for choice in plan.choices]


def rollout(
    env: gym.Env[Any, Any], choices: list[int], source: str, log: SearchLog, target: float | None = None
) -> list[Transition]:
    """Play the given choices, one per layer.

    :param env: around an ``HSQEnv``
    :param target: of the environment's several, the episode's
    :return: the steps, for a replay buffer; none if the budget of evaluations ends before the episode
    """
    started, total = time.monotonic(), 0.0
    transitions = _steps_of(env, each(choices, f"plan of {source.replace('_', ' ')}, layer"), target)
    if transitions:
        info = transitions[-1][-1]
        for *_, reward, _, _ in transitions:
            total += reward
        log.note(Episode.of(source, info, total, time.monotonic() - started), info)
    return transitions


def revisited(env: HSQEnv, episodes: Iterable[Episode]) -> list[Transition]:
    """The steps of finished episodes, for who has to learn from them again; nothing is computed and nothing logged.

    What others have measured counts as evaluations, and beginnings that episodes share count once more than they took:
    rather too many than too few. Episodes of which not every step is known are left out.
    """
    transitions = []
    for episode in episodes:
        choices, target = executed_choices(env, episode.plan), episode.target_ratio
        transitions += _steps_of(env, choices, target, lambda action: not env.is_known(action))
    return transitions


def _steps_of(
    env: gym.Env[Any, Any],
    choices: Iterable[int],
    target: float | None,
    stops: Callable[[Any], bool] = lambda action: False,
) -> list[Transition]:
    """One episode; nothing if it is stopped or truncated, lest returns of several steps lead into the next one."""
    inner = env.unwrapped
    assert isinstance(inner, HSQEnv)
    transitions: list[Transition] = []
    observation, _ = env.reset(options=None if target is None else {"target_ratio": target})
    for choice in choices:
        action = inner.actions.encode(choice, inner.alpha)
        if stops(action):
            return []
        following, reward, terminated, truncated, info = env.step(action)
        if truncated:
            return []
        transitions.append((observation, following, info["executed_action"], float(reward), terminated, info))
        observation = following
    return transitions


def play(
    policy: Policy,
    env: gym.Env[Any, Any],
    source: str,
    log: SearchLog,
    episodes: int | None = None,
    deadline: float | None = None,
    target: float | None = None,
    evaluations: int | None = None,
) -> None:
    """Let anything that has ``predict`` act until its episodes, its seconds or the evaluations are used up.

    :param env: around an ``HSQEnv``
    :param deadline: a ``time.monotonic()``
    :param target: of the environment's several, the one to aim at; drawn per episode when None
    :param evaluations: that the environment allows, for whoever is shown how far it is
    """
    inner = env.unwrapped
    assert isinstance(inner, HSQEnv)
    played = 0
    with TrainingProgress(len(inner.layers), source, episodes, evaluations, deadline) as progress:
        while (episodes is None or played < episodes) and (deadline is None or time.monotonic() < deadline):
            if isinstance(policy, SearchesPlans) and not policy.start_episode():
                return
            info = play_episode(policy, env, source, log, target, progress)
            if info is None:
                return
            played += "plan" in info
            if isinstance(policy, SearchesPlans):
                policy.end_episode(info)


def play_episode(
    policy: Policy,
    env: gym.Env[Any, Any],
    source: str,
    log: SearchLog,
    target: float | None = None,
    on_step: Callable[[dict[str, Any]], object] = lambda info: None,
) -> dict[str, Any] | None:
    """One episode; the info of its last step, or None if the evaluations ended before."""
    started, total, state, first = time.monotonic(), 0.0, None, True
    observation, info = env.reset(options=None if target is None else {"target_ratio": target})
    while True:
        action, state = policy.predict(observation, state=state, episode_start=np.array([first]), deterministic=False)
        following, reward, terminated, truncated, info = env.step(action)
        if truncated:
            return None
        on_step(info)
        total, first = total + float(reward), False
        if isinstance(policy, LearnsFromSteps):
            policy.observe((observation, following, info["executed_action"], float(reward), terminated, info))
        observation = following
        if terminated:
            log.note(Episode.of(source, info, total, time.monotonic() - started), info)
            return info
        if isinstance(policy, SearchesPlans) and policy.gives_up():
            return info


def seed_replay(agent: BaseAlgorithm, transitions: list[Transition]) -> list[BaseCallback]:
    """Put steps into the replay buffer of an agent that has one.

    :return: callbacks that make the agent learn from them first
    """
    if not isinstance(agent, OffPolicyAlgorithm) or agent.replay_buffer is None or not transitions:
        return []
    seeds = type(agent.replay_buffer)(
        (len(transitions) + 1) * agent.n_envs,  # never full
        agent.observation_space,
        agent.action_space,
        device=agent.device,
        n_envs=agent.n_envs,
        **agent.replay_buffer_kwargs,
    )
    store(agent, transitions, agent.replay_buffer, seeds)
    return [PretrainOnReplay(seeds)]


def store(agent: OffPolicyAlgorithm, transitions: Iterable[Transition], *buffers: ReplayBuffer) -> None:
    """Put steps into buffers of an agent, into the column of every worker."""
    for observation, following, action, reward, done, info in transitions:
        stored = action if np.ndim(action) == 0 else agent.policy.scale_action(np.asarray(action))
        obs, next_obs, actions, rewards, dones = (
            np.repeat(np.asarray(value)[None], agent.n_envs, axis=0)
            for value in (observation, following, stored, reward, done)
        )
        for buffer in buffers:
            buffer.add(obs, next_obs, actions, rewards, dones, [info] * agent.n_envs)


def train_agent(
    agent: BaseAlgorithm,
    layers: int,
    source: str,
    log: SearchLog,
    episodes: int | None,
    time_budget: float | None,
    callbacks: list[BaseCallback],
    keeper: Keeper | None = None,
    evaluations: int | None = None,
) -> None:
    """Let the agent learn until its episodes, its seconds or the evaluations are used up.

    :param layers: steps of an episode
    :param source: name of the agent in the log
    :param keeper: of checkpoints
    :param evaluations: that its environments allow; None for no limit
    """
    if episodes == 0 or time_budget == 0:
        return
    deadline = None if time_budget is None else time.monotonic() + time_budget
    progress = TrainingProgress(layers, source, episodes, evaluations, deadline)
    recorder = EpisodeRecorder(source, log.note, episodes, deadline, progress, progress.close)
    unlimited = episodes is None or any(getattr(c, "gives_up_episodes", False) for c in callbacks)
    rounds = math.ceil((UNLIMITED_EPISODES if unlimited else episodes or 0) / agent.n_envs)
    if isinstance(agent, ExploresAllowed):
        agent.training_progress = progress
    with progress:
        learn(agent, rounds * agent.n_envs * layers, Callbacks([*callbacks, recorder], keeper))
