"""Who decides when a search's checkpoint is written, and how a search ends that was told to."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv

from agents.callbacks import EpisodeRecorder
from agents.checkpoint import Checkpoints, freeze, random_states, set_random_states, thaw
from agents.episode import Episode
from agents.training_progress import TrainingProgress
from hsq_env.env import HSQEnv
from hsq_env.standing import Standing, standing_of

LOG_FIELDS = ("episodes", "best_score", "steps", "visited_steps", "notes", "ended", "told")


@dataclass
class Training:
    """A training between two of its steps.

    :param callbacks: with the agent, as their model
    :param total: steps after which the agent would stop by itself
    :param standing: of the environment
    :param noise: attributes of the agent's action noise, which SB3 resets when it goes on
    :param random: see ``random_states``
    :param spent: ``steps_taken`` of worker processes
    :param lost: episodes that the agent has finished since, which count and of which it does not know
    """

    callbacks: "Callbacks"
    total: int
    standing: Standing
    noise: dict[str, Any]
    random: dict[str, Any]
    spent: list[tuple[int, int]]
    lost: list[Episode] = field(default_factory=list)


class Keeper:
    """Writes the checkpoints of a search.

    :param checkpoints: where
    :param log: the search's ``SearchLog``
    :param minutes: between two of them; the first is written as soon as the training begins
    :param say: prints a line
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        minutes: float,
        env: HSQEnv,
        log: Any,
        say: Callable[[str], None],
    ) -> None:
        self.checkpoints, self.minutes, self.env, self.log, self.say = checkpoints, minutes, env, log, say
        self.stopping = False
        self.written = 0
        self._due = time.monotonic()

    @property
    def _made_again(self) -> dict[str, Any]:
        return {"keeper": self, "log": self.log, "say": self.log.say}

    def load(self) -> Training | None:
        """The newest checkpoint's training, with the log put back.

        :return: None if there is no checkpoint, or if the training had ended, which the log then says

        :raises InputError: if it was written by other versions
        """
        data = self.checkpoints.newest(self.say)
        if data is None:
            return None
        training, log = thaw(data, self.env, self._made_again)
        self.log.__dict__.update(log)
        assert training is None or isinstance(training, Training)
        return training

    def between_steps(self, callbacks: "Callbacks") -> None:
        """Called where nothing is half-done; writes what is due.

        :raises KeyboardInterrupt: where the search was told to stop
        """
        if self.stopping or time.monotonic() >= self._due:
            self.write(callbacks)
        if self.stopping:
            raise KeyboardInterrupt

    def write(self, callbacks: "Callbacks | None") -> None:
        """Write a checkpoint; where that fails, say so and go on.

        :param callbacks: None once the training has ended
        """
        training, workers = None, None
        try:
            with _without_frames(callbacks):
                if callbacks is not None:
                    training = self._training(callbacks)
                    workers = callbacks.model.env if training.spent else None
                log = {name: getattr(self.log, name) for name in LOG_FIELDS}
                data = freeze((training, log), self.env, {**self._made_again, "workers": workers})
        except Exception as error:  # pickle has many ways to say no
            self.say(f"This agent or a callback cannot be kept in a checkpoint ({error}): {self._left()}.")
        else:
            try:
                self.checkpoints.write(data)
                self.written += 1
            except OSError as error:
                place = error.filename or self.checkpoints.folder
                self.say(f"No checkpoint could be written to {place} ({error.strerror}): {self._left()}.")
        self._due = time.monotonic() + 60 * self.minutes

    def _left(self) -> str:
        files = self.checkpoints.files()
        going = "the search ends" if self.stopping else "the search goes on"
        return f"{going}, {files[-1].name} stays" if files else f"{going} without one"

    def _training(self, callbacks: "Callbacks") -> Training:
        agent = callbacks.model
        alone = agent.env is None or isinstance(agent.env.unwrapped, DummyVecEnv)
        spent = [] if alone or agent.env is None else agent.env.get_attr("steps_taken")
        noise = dict(vars(agent.action_noise)) if agent.action_noise is not None else {}
        return Training(callbacks, agent._total_timesteps, standing_of(self.env), noise, random_states(), spent)

    @contextmanager
    def deferring_signals(self, present: str = "step") -> Iterator[None]:
        """Inside, Ctrl-C and SIGTERM end the search after the present step, with a checkpoint; twice they do at once.

        Only a main thread hears of signals; in another nothing is changed.

        :param present: what is finished first
        """

        def stop(number: int, frame: Any) -> None:
            if self.stopping:
                raise KeyboardInterrupt
            self.stopping = True
            self.say(f"Stopping after the present {present}, with a checkpoint; once more to stop at once.")

        with handling_signals(stop):
            yield


@contextmanager
def handling_signals(handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Ctrl-C and SIGTERM go to ``handler`` inside, if this is the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, handler) for number in numbers]
    try:
        yield
    finally:
        for number, old in zip(numbers, before, strict=True):
            signal.signal(number, old)


def interrupt(number: int, frame: Any) -> None:
    """A handler that makes SIGTERM what Ctrl-C is."""
    raise KeyboardInterrupt


class Callbacks(CallbackList):
    """A training's callbacks, which also see to its checkpoints.

    :param keeper: of these; None for none
    """

    def __init__(self, callbacks: list[BaseCallback], keeper: Keeper | None = None) -> None:
        super().__init__(callbacks)
        self.keeper = keeper
        self.resumed: Training | None = None

    def finished_meanwhile(self, episodes: int) -> None:
        """Count episodes that were finished after the checkpoint and need not be played again."""
        for callback in all_callbacks(self):
            if isinstance(callback, EpisodeRecorder):
                callback.finished += episodes
                if isinstance(callback.on_progress, TrainingProgress):
                    callback.on_progress.finished += episodes

    def _on_training_start(self) -> None:
        if self.resumed is None:
            super()._on_training_start()
            return
        training, self.resumed = self.resumed, None
        agent = self.model
        for callback in all_callbacks(self):
            callback.locals, callback.globals = self.locals, self.globals
            callback.num_timesteps = agent.num_timesteps
            apart = not isinstance(self.training_env.unwrapped, DummyVecEnv)
            if apart and hasattr(callback, "on_new_workers"):
                callback.on_new_workers()
        if agent.action_noise is not None:
            vars(agent.action_noise).update(training.noise)
        if isinstance(self.training_env.unwrapped, DummyVecEnv):  # others would play the same episodes again
            set_random_states(training.random)

    def _on_rollout_start(self) -> None:
        if self.keeper is not None:
            self.keeper.between_steps(self)
        super()._on_rollout_start()


def all_callbacks(callback: BaseCallback) -> list[BaseCallback]:
    """A callback and those inside it."""
    inside = [*getattr(callback, "callbacks", []), getattr(callback, "callback", None)]
    return [callback, *(c for some in inside if isinstance(some, BaseCallback) for c in all_callbacks(some))]


@contextmanager
def _without_frames(callbacks: Callbacks | None) -> Iterator[None]:
    """SB3 lets callbacks see the local and global variables of a training; those are no part of it."""
    some = [] if callbacks is None else all_callbacks(callbacks)
    frames = [(callback.locals, callback.globals) for callback in some]
    for callback in some:
        callback.locals, callback.globals = {}, {}
    try:
        yield
    finally:
        for callback, (of_function, of_module) in zip(some, frames, strict=True):
            callback.locals, callback.globals = of_function, of_module


def learn(agent: BaseAlgorithm, total: int, callbacks: Callbacks) -> None:
    """Let an agent learn up to ``total`` steps, from where its training stands if it is a resumed one."""
    resumed = callbacks.resumed is not None
    left = total - agent.num_timesteps if resumed else total
    present = f"rollout of {agent.n_steps} steps" if isinstance(agent, OnPolicyAlgorithm) else "step"
    with callbacks.keeper.deferring_signals(present) if callbacks.keeper is not None else _nothing():
        agent.learn(total_timesteps=left, callback=callbacks, reset_num_timesteps=not resumed)


@contextmanager
def _nothing() -> Iterator[None]:
    yield
