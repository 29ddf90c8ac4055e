"""The part of a search that looks for plans: rollouts that seed the replay, and agents of every kind at work."""

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import gymnasium as gym
import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from agents.callbacks import Episode, EpisodeRecorder, PretrainOnReplay
from agents.keeper import Callbacks, Keeper, learn
from agents.run_folder import RunFolder
from agents.training_progress import TrainingProgress
from detectors.progress import each
from detectors.teacher import write_atomically
from hsq_env.choices import Choice, Plan
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


@dataclass
class SearchLog:
    """What a search has found so far.

    :param say: prints a line
    :param folder: where the best plan so far is written; None for nowhere
    :param merit: of accuracy and ratio, smaller is better, where plans are compared by it (see ``KeepBest``)
    :param bounded: whether there is a budget without a target ratio, of time
    :param notes: what else a search has to tell, by name; callables are called when they are written
    :param ended: whether there is nothing left to look for
    :param told: what the notes of a search that has ended were
    :param record: a file to which every finished episode is added
    :param on_episode: called with every finished episode and its score
    """

    say: Callable[[str], None]
    folder: RunFolder | None = None
    episodes: list[Episode] = field(default_factory=list)
    best_score: dict[float | None, float] = field(default_factory=dict)  # by target ratio
    steps: int = 0
    visited_steps: int = 0  # that the table of visited prefixes answered
    merit: Callable[[float, float], float] | None = None
    bounded: bool = False
    notes: dict[str, Any] = field(default_factory=dict)
    ended: bool = False
    told: dict[str, Any] = field(default_factory=dict)
    record: Path | None = None
    on_episode: Callable[[Episode, float], object] = lambda episode, score: None

    def count(self, steps: tuple[int, int]) -> None:
        """Add the ``steps_taken`` of an environment."""
        self.steps, self.visited_steps = self.steps + steps[0], self.visited_steps + steps[1]

    def note(self, episode: Episode, info: dict[str, Any]) -> None:
        """Keep and announce a finished episode, and write it to disk if it is the best for its target.

        :param info: of its last step, from ``KeepBest``
        """
        if "model" in info and info["score"] > self.best_score.get(episode.target_ratio, -math.inf):
            self.best_score[episode.target_ratio] = info["score"]
            if self.folder is not None:
                self.folder.write_model(info["model"], episode.target_ratio)  # first: a full disk refuses it sooner
                self.folder.write_plan(episode.plan, episode.target_ratio)
        self.episodes.append(episode)
        if self.record is not None:
            with open(self.record, "a") as file:
                file.write(json.dumps({**episode.to_json(), "score": info.get("score")}) + "\n")
        aim = f" (asked {episode.target_ratio:g}x)" if len(self.best_score) > 1 else ""
        self.say(
            f"episode {len(self.episodes)} ({episode.source}): accuracy {episode.accuracy:.4f} at "
            f"{episode.ratio:.2f}x{aim}, divergence {episode.divergence:.3f}, {episode.seconds:.0f} s"
        )
        self.on_episode(episode, self.score(episode))

    def end(self) -> None:
        """Nothing more is looked for: notes become what they have to tell."""
        self.told, self.notes, self.ended = self.diagnostics(), {}, True

    def diagnostics(self) -> dict[str, Any]:
        """What the notes have to tell, as JSON has it."""
        return {**self.told, **{name: note() if callable(note) else _plain(note) for name, note in self.notes.items()}}

    def recover(self, layers: Sequence[str], anew: bool) -> list[Episode]:
        """Take episodes back that were finished after those that are known, from the record.

        :param layers: names
        :param anew: those episodes will be played again; the record forgets them
        :return: those that were taken
        """
        if self.record is None or not self.record.is_file():
            return []
        lines = self.record.read_bytes().splitlines(keepends=True)
        if anew:
            write_atomically(self.record, b"".join(lines[: len(self.episodes)]))
            return []
        taken, whole = [], lines[: len(self.episodes)]
        for line in lines[len(self.episodes) :]:
            try:
                row = json.loads(line)
            except ValueError:  # torn
                continue
            whole.append(line.rstrip(b"\n") + b"\n")
            score, choices = row.pop("score"), tuple(Choice(*choice) for choice in row.pop("choices"))
            episode = Episode(plan=Plan(tuple(layers), choices), **row)
            taken.append(episode)
            if score is not None:
                best = self.best_score.get(episode.target_ratio, -math.inf)
                self.best_score[episode.target_ratio] = max(best, score)
        write_atomically(self.record, b"".join(whole))
        self.episodes += taken
        return taken

    def best_so_far(self) -> str:
        """The best plan for the target of the last episode, in words; nothing where none has reached it yet."""
        target = self.episodes[-1].target_ratio if self.episodes else None
        best = self.best_plans(1, target)
        if not best:
            return ""
        aim = f" for {target:g}x" if target is not None and len({e.target_ratio for e in self.episodes}) > 1 else ""
        ratio, accuracy, reward = best[0].ratio, best[0].accuracy, best[0].total_reward
        return f"best{aim} {ratio:.2f}x, accuracy {accuracy:.4f}, reward {reward:.3f}"

    def score(self, episode: Episode) -> float:
        """What plans are compared by, higher is better; as ``KeepBest`` has it."""
        if self.merit is not None:
            return -self.merit(episode.accuracy, episode.ratio)
        return -episode.divergence if self.bounded or episode.target_ratio is not None else episode.total_reward

    def best_plans(self, count: int, target: float | None) -> list[Episode]:
        """The best finished episodes with different plans, best first, earlier ones first among equals.

        :param target: plans that reach this ratio count, whatever they were asked for; None for no target
        """
        good = [e for e in self.episodes if target is None or e.ratio >= target]
        different: dict[Plan, Episode] = {}
        aimed = [replace(e, target_ratio=target) for e in good]
        for episode in sorted(aimed, key=lambda e: -self.score(e)):
            different.setdefault(episode.plan, episode)
        return list(different.values())[:count]


def _plain(note: Any) -> Any:
    """Records as dictionaries, tuples as lists, as JSON has them."""
    return [asdict(row) if is_dataclass(row) and not isinstance(row, type) else list(row) for row in note]


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
    inner = env.unwrapped
    assert isinstance(inner, HSQEnv)
    started, total = time.monotonic(), 0.0
    transitions: list[Transition] = []
    observation, info = env.reset(options=None if target is None else {"target_ratio": target})
    for choice in each(choices, f"plan of {source.replace('_', ' ')}, layer"):
        following, reward, terminated, truncated, info = env.step(inner.actions.encode(choice, inner.alpha))
        if truncated:
            return []  # an episode without an end would lead returns of several steps into the next one
        transitions.append((observation, following, info["executed_action"], float(reward), terminated, info))
        observation, total = following, total + float(reward)
    log.note(Episode.of(source, info, total, time.monotonic() - started), info)
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
    for observation, following, action, reward, done, info in transitions:
        stored = action if np.ndim(action) == 0 else agent.policy.scale_action(np.asarray(action))
        obs, next_obs, actions, rewards, dones = (
            np.repeat(np.asarray(value)[None], agent.n_envs, axis=0)  # the buffer has a column for every worker
            for value in (observation, following, stored, reward, done)
        )
        agent.replay_buffer.add(obs, next_obs, actions, rewards, dones, [info] * agent.n_envs)
    return [PretrainOnReplay()]


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
    with progress:
        learn(agent, rounds * agent.n_envs * layers, Callbacks([*callbacks, recorder], keeper))
