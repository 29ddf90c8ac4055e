"""Several environments side by side, one process and one thread each, for any SB3 agent."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import torch
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv

from agents.keep_best import KeepBest
from detectors.errors import InputError
from hsq_env.env import HSQEnv

Wrap = Callable[[HSQEnv, int], gym.Env[Any, Any]]  # of an environment and the number of its worker


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster to spread workers over.

    :param address: of a cluster, "auto" for that of this machine, "local" for none, but processes of this machine
    :param gpus: share of a GPU that each worker takes
    """

    address: str
    gpus: float = 0.0


DEAD = (EOFError, BrokenPipeError, ConnectionResetError)
LOOKS = 2.0  # seconds between a worker's looks at whether its parent is still there


def keep_best(env: HSQEnv, worker: int) -> gym.Env[Any, Any]:
    """What every worker is wrapped in at least."""
    return KeepBest(env)


@contextmanager
def workers(
    env: HSQEnv,
    count: int,
    wrapping: Callable[[], Wrap] = lambda: keep_best,
    cluster: Cluster | None = None,
    say: Callable[[str], None] = print,
) -> Iterator[gym.Env[Any, Any] | VecEnv]:
    """What an agent trains on: the environment itself, ``count`` processes with a fork of it each, or Ray's actors.

    Where processes can be forked, the teacher, the images, the kept teacher outputs and the prefixes visited so far lie
    in memory once and are shared; a worker adds its student and the states that it keeps. On an accelerator, and where
    processes cannot be forked, every worker gets a copy.

    :param env: what workers start from; it stays as it is
    :param count: 1 makes no process
    :param wrapping: makes what is put around each worker's environment, anew for each that begins
    :param cluster: where workers are Ray's actors, one as well as several
    :param say: prints a line
    :raises InputError: if ``count`` is below 1; if there is no such cluster
    :raises RuntimeError: if a worker dies
    """
    check_workers(count)
    if cluster is not None:
        with _on_cluster(env, count, wrapping, cluster, say) as spread:
            yield spread
        return
    if count == 1:
        yield wrapping()(env, 0)
        return
    made = SubprocVecEnv([starter(env, wrapping(), i) for i in range(count)], start_method=start_method(env))
    try:
        yield made
    except DEAD as error:
        _stop(made)
        raise RuntimeError(
            "A worker process died, perhaps for lack of memory: give fewer --workers or fewer --search-images."
        ) from error
    except BaseException:
        _stop(made)
        raise
    made.close()


@contextmanager
def _on_cluster(
    env: HSQEnv, count: int, wrapping: Callable[[], Wrap], cluster: Cluster, say: Callable[[str], None]
) -> Iterator[VecEnv]:
    try:
        from agents import ray_workers
    except ImportError as error:
        raise missing_ray() from error
    own = ray_workers.connect(cluster.address, count)
    made = None
    try:
        made = ray_workers.RayVecEnv(env, count, wrapping, cluster.gpus, env.compressor.outcomes_file, say)
        yield made
    finally:
        if made is not None:
            made.close()
        if own:
            ray_workers.disconnect()


def missing_ray() -> InputError:
    """What to say where the extra is not installed."""
    return InputError("Ray is not installed: pip install -e '.[ray]'.")


def check_workers(count: int) -> None:
    """:raises InputError: if no work could be done"""
    if count < 1:
        raise InputError(f"{count} workers can do no work: give --workers 1 or more.")


def steps_taken(env: gym.Env[Any, Any] | VecEnv) -> list[tuple[int, int]]:
    """``HSQEnv.steps_taken`` of every worker."""
    return env.get_attr("steps_taken") if isinstance(env, VecEnv) else [env.get_wrapper_attr("steps_taken")]


def start_method(env: HSQEnv) -> str:
    """ "fork" shares memory; CUDA cannot live through it."""
    device = next(env.task.teacher.parameters()).device.type
    return "fork" if device == "cpu" and "fork" in multiprocessing.get_all_start_methods() else "spawn"


def starter(env: HSQEnv, wrap: Wrap, worker: int) -> Callable[[], gym.Env[Any, Any]]:
    """What a worker process calls first."""
    parent = os.getpid()

    def start() -> gym.Env[Any, Any]:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
        torch.set_num_threads(1)  # before anything is computed: threads do not live through a fork
        for number in (signal.SIGINT, signal.SIGTERM):  # Ctrl-C, and a batch system's SIGTERM, are the parent's
            signal.signal(number, signal.SIG_IGN)
        return Monitor(wrap(own_fork(env, worker), worker))

    return start


def own_fork(env: HSQEnv, worker: int) -> HSQEnv:
    """A fork that draws targets of its own, and not those of the other workers."""
    fork = env.fork()
    fork.np_random = env.np_random.spawn(worker + 1)[worker]
    return fork


def _end_with(parent: int) -> None:
    """End this process once its parent has: killed, it closes no pipe that other workers do not hold open."""
    while os.getppid() == parent:
        time.sleep(LOOKS)
    os._exit(1)


def _stop(made: SubprocVecEnv) -> None:
    """End the processes, whatever they are doing: after an interruption nobody reads their answers."""
    for process in made.processes:
        process.kill()
    for process in made.processes:
        process.join()
    made.closed = True
