"""Environments as Ray actors, on this machine or on a cluster's nodes, for any SB3 agent.

An actor that dies is begun again. Its episode is lost: the step that it owed ends it with ``info["worker_lost"]``,
neither finished nor rewarded, and agents with a replay drop what they have of it (see ``agents.executed``).

Ray is an extra: whoever imports this module says what is missing (``agents.workers.missing_ray``).
"""

import pickle
import signal
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.exceptions import ActorUnschedulableError, NodeDiedError, OutOfMemoryError, RayActorError, RayError
from stable_baselines3.common.vec_env import VecEnv

from agents.ray_actors import OutcomeKeeper, Worker
from agents.workers import Wrap
from detectors.errors import InputError
from hsq_env.env import HSQEnv

LOCAL = "local"  # address: no cluster, but processes of this machine
MOST_DEATHS = 5  # of a worker in a row, without a finished episode between them
DEATHS = (RayActorError, OutOfMemoryError, NodeDiedError, ActorUnschedulableError)
LOST = "worker_lost"


def connect(address: str, workers: int) -> bool:
    """Join the cluster of an address, or begin one of this machine for ``LOCAL``; whether it was begun here.

    :raises InputError: if no cluster answers
    """
    if ray.is_initialized():
        return False
    settings: dict[str, Any] = {
        "log_to_driver": False,
        "runtime_env": {"env_vars": {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1"}},
    }
    here = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM)
    try:
        if address == LOCAL:
            ray.init(num_cpus=workers, include_dashboard=False, **settings)
        else:
            ray.init(address=address, **settings)
    except (ConnectionError, ValueError, RuntimeError, RayError) as error:
        raise InputError(f"No Ray cluster answers at '{address}' ({error}): give its address with --ray.") from error
    finally:
        if here and handler is not None:
            signal.signal(signal.SIGTERM, handler)  # Ray has one of its own, which would end the search without a word
    return address == LOCAL


def disconnect() -> None:
    """End the cluster that ``connect`` began."""
    ray.shutdown()


class RayVecEnv(VecEnv):
    """Environments in Ray's actors, side by side.

    The environment reaches every node once, through Ray's object store, and every actor makes its own copy of it. An
    actor that dies is replaced while the others wait.

    :param env: what workers start from; it stays as it is
    :param count: of workers, with a processor core each
    :param wrap: makes what is put around each worker's environment; called anew whenever a worker begins
    :param gpus: share of a GPU that each worker takes
    :param outcomes: file of the search, read and written where an actor can run on this machine; None shares outcomes
        in memory
    :param say: prints a line
    :raises InputError: if the cluster has no room for the workers
    """

    def __init__(
        self,
        env: HSQEnv,
        count: int,
        wrap: Callable[[], Wrap],
        gpus: float = 0.0,
        outcomes: Path | None = None,
        say: Callable[[str], None] = print,
    ) -> None:
        self._check_room(count, gpus)
        self._wrap, self._say, self._env = wrap, say, ray.put(pickle.dumps(env))
        self._make = ray.remote(num_cpus=1, num_gpus=gpus)(Worker).remote
        self._outcomes = ray.remote(num_cpus=0)(OutcomeKeeper).options(**_here()).remote(outcomes)
        if outcomes is not None:
            outcomes.touch()
        self._file = outcomes
        self._deaths = [0] * count
        self._begun = 0  # workers in the middle of a search
        self._gone: set[int] = set()  # whose step is owed by one that died
        self._actors = [self._begin(worker) for worker in range(count)]
        self._steps: list[Any] = []
        self._actions: Any = None
        self._observations: Any = None
        super().__init__(count, env.observation_space, env.action_space)  # asks the actors for their render modes

    def _begin(self, worker: int) -> Any:
        return self._make(self._env, self._wrap(), worker, self._outcomes, self._file)

    @staticmethod
    def _check_room(count: int, gpus: float) -> None:
        there = ray.cluster_resources()
        for name, wanted in (("CPU", float(count)), ("GPU", gpus * count)):
            if wanted > there.get(name, 0.0):
                raise InputError(
                    f"{count} workers need {wanted:g} {name}s and the cluster has {there.get(name, 0.0):g}: give fewer "
                    "--workers or a smaller --gpus-per-worker."
                )

    def _replace(self, worker: int, error: Exception) -> None:
        """Begin a worker again whose actor died.

        :raises RuntimeError: if it dies again and again
        """
        self._deaths[worker] += 1
        if self._deaths[worker] > MOST_DEATHS:
            raise RuntimeError(
                f"Worker {worker} has died {MOST_DEATHS} times in a row, perhaps for lack of memory: give fewer "
                f"--workers or fewer --search-images. The last time: {str(error).strip().splitlines()[-1]}"
            ) from error
        self._say(f"worker {worker} died: it is begun again, and its episode is dropped")
        self._gone.add(worker)
        self._actors[worker] = self._begin(worker)

    def _ask(self, workers: Sequence[int], method: str, *arguments: Any) -> list[Any]:
        """Call an actor method of some workers; those that have died are begun again, reset and asked once more."""
        asked = [getattr(self._actors[worker], method).remote(*arguments) for worker in workers]
        return [self._answer(worker, given, method, arguments) for worker, given in zip(workers, asked, strict=True)]

    def _answer(self, worker: int, asked: Any, method: str, arguments: tuple[Any, ...]) -> Any:
        while True:
            try:
                return ray.get(asked)
            except DEATHS as error:
                self._replace(worker, error)
                if method != "reset":
                    self._actors[worker].reset.remote(self._new_seed(), None)  # actors do what they are told in order
                asked = getattr(self._actors[worker], method).remote(*arguments)

    def _new_seed(self) -> int:
        """For a worker that begins in the middle, so that it does not draw what it drew before."""
        self._begun += 1
        return 7919 * self._begun

    def reset(self) -> Any:
        """See SB3."""
        every = range(self.num_envs)
        asked = [self._actors[i].reset.remote(self._seeds[i], self._options[i] or None) for i in every]
        given = [(self._seeds[i], self._options[i] or None) for i in every]
        answers = [self._answer(i, asked[i], "reset", given[i]) for i in every]
        self._gone.clear()  # nothing was going on
        self._observations, self.reset_infos = np.stack([a[0] for a in answers]), [a[1] for a in answers]
        self._reset_seeds()
        self._reset_options()
        return self._observations.copy()

    def step_async(self, actions: np.ndarray) -> None:
        """See SB3."""
        self._actions = actions
        self._steps = [
            None if worker in self._gone else self._actors[worker].step.remote(action)
            for worker, action in enumerate(actions)
        ]

    def step_wait(self) -> Any:
        """See SB3."""
        answers = []
        for worker, asked in enumerate(self._steps):
            try:
                answer = None if asked is None else ray.get(asked)
                answers.append(answer)
                if answer is not None and answer[2]:
                    self._deaths[worker] = 0
            except DEATHS as error:
                answers.append(None)
                self._replace(worker, error)
        answers = [self._lost(worker) if a is None else a for worker, a in enumerate(answers)]
        observations, rewards, dones, infos, following = zip(*answers, strict=True)
        self._observations, self.reset_infos = np.stack(observations), list(following)
        return self._observations.copy(), np.array(rewards, dtype=np.float64), np.array(dones), list(infos)

    def _lost(self, worker: int) -> tuple[Any, float, bool, dict[str, Any], dict[str, Any]]:
        """The end of an episode whose worker died, and the beginning of the next."""
        observation, following = self._ask([worker], "reset", self._new_seed(), None)[0]
        self._gone.discard(worker)
        info = {
            LOST: True,
            "executed_action": self._actions[worker],
            "terminal_observation": self._observations[worker],
            "TimeLimit.truncated": True,
        }
        return observation, 0.0, True, info, following

    def close(self) -> None:
        """End the actors."""
        for actor in [*self._actors, self._outcomes]:
            with suppress(RayError):
                ray.kill(actor)
        self._actors = []

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """See SB3."""
        return self._ask(list(self._get_indices(indices)), "get", attr_name)

    def has_attr(self, attr_name: str) -> bool:
        """See SB3."""
        return all(self._ask(range(self.num_envs), "has", attr_name))

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """See SB3."""
        self._ask(list(self._get_indices(indices)), "set", attr_name, value)

    def env_method(self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any) -> list[Any]:
        """See SB3."""
        return self._ask(list(self._get_indices(indices)), "call", method_name, method_args, method_kwargs)

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        """See SB3."""
        return self._ask(list(self._get_indices(indices)), "wrapped", wrapper_class)


def _here() -> dict[str, Any]:
    """Options of an actor that runs on this machine, if this machine is one of the cluster's."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    if ray.util.client.ray.is_connected():  # the driver is a client outside of the cluster
        return {}
    node = ray.get_runtime_context().get_node_id()
    return {"scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=True)}
