"""Environments as Ray's actors: the same steps, shared outcomes, workers that die."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_task import TinyTask

import agents.search
from agents.explorer import Explorer
from agents.keep_best import KeepBest
from agents.workers import Cluster, keep_best, workers
from detectors.errors import InputError
from detectors.teacher import SHIPPED_TEACHER
from hsq_env.env import HSQEnv
from hsq_env.make import make_task

ray = pytest.importorskip("ray", reason="an extra: pip install -e '.[ray]'")

from agents.ray_workers import LOCAL, LOST, MOST_DEATHS, RayVecEnv, connect, disconnect  # noqa: E402

LAYERS = 7


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Of this machine, for all tests of this file."""
    folders = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", folders)  # actors unpickle the tiny task
        assert connect(LOCAL, 2)
        yield Cluster(LOCAL)
        disconnect()


def env_of(tiny: TinyTask) -> HSQEnv:
    env = HSQEnv(tiny, target_ratio=6.0, sensitivities=np.zeros((LAYERS, 12)))
    env.reset()
    return env


def pid_of(vec: Any, worker: int) -> int:
    found: int = ray.get(vec._actors[worker].__ray_call__.remote(lambda actor: os.getpid()))
    return found


def kill(vec: Any, worker: int) -> None:
    os.kill(pid_of(vec, worker), signal.SIGKILL)


def test_actors_do_what_environments_of_their_own_do(tiny: TinyTask, cluster: Cluster) -> None:
    actions = np.random.default_rng(0).integers(0, 12, (2 * LAYERS, 2))
    alone = [KeepBest(env_of(tiny)), KeepBest(env_of(tiny))]
    with workers(env_of(tiny), 2, cluster=cluster) as both:
        assert isinstance(both, RayVecEnv)
        assert np.array_equal(both.reset(), [one.reset()[0] for one in alone])
        for row in actions:
            observations, rewards, dones, infos = both.step(row)
            for worker, (one, action) in enumerate(zip(alone, row, strict=True)):
                observation, reward, done, _, info = one.step(int(action))
                told = infos[worker]
                assert rewards[worker] == reward and dones[worker] == done
                assert told["executed_action"] == info["executed_action"] and told.get("model") == info.get("model")
                if done:
                    assert np.array_equal(told["terminal_observation"], observation)
                    observation, _ = one.reset()
                assert np.array_equal(observations[worker], observation)
        assert both.get_attr("steps_taken") == [(2 * LAYERS, one.unwrapped.steps_taken[1]) for one in alone]  # type: ignore[attr-defined]
        both.env_method("set_weights", 0.5, 0.25, indices=1)
        assert both.get_attr("beta") == [0.8, 0.25] and both.env_is_wrapped(KeepBest) == [True, True]
        assert both.has_attr("budgets") and not both.has_attr("no such thing")


@pytest.mark.long
def test_what_one_worker_measured_is_not_measured_by_another(tiny: TinyTask, cluster: Cluster, tmp_path: Path) -> None:
    vec = RayVecEnv(env_of(tiny), 2, lambda: keep_best, outcomes=tmp_path / "outcomes")
    vec.reset()
    for action in (4, 8, 5):
        rewards = vec.step(np.array([action, action]))[1]
        assert rewards[0] == rewards[1]
    vec.close()
    lines = (tmp_path / "outcomes").read_text().split()
    assert 3 <= len(set(lines)) == 3 <= len(lines) <= 6  # both may have been at it at once


@pytest.mark.long
def test_a_worker_that_dies_is_begun_again_and_its_episode_lost(tiny: TinyTask, cluster: Cluster) -> None:
    said: list[str] = []
    vec = RayVecEnv(env_of(tiny), 2, lambda: keep_best, say=said.append)
    first = vec.reset()
    before = [vec.step(np.array([4, 8])) for _ in range(3)][-1][0]
    kill(vec, 1)
    observations, rewards, dones, infos = vec.step(np.array([4, 8]))
    assert said == ["worker 1 died: it is begun again, and its episode is dropped"]
    assert list(dones) == [False, True] and rewards[1] == 0.0 and LOST in infos[1] and LOST not in infos[0]
    assert infos[1]["executed_action"] == 8 and np.array_equal(infos[1]["terminal_observation"], before[1])
    assert np.array_equal(observations[1], first[1]) and not np.array_equal(observations[0], first[0])
    kill(vec, 0)
    vec.env_method("set_weights", 0.3, 0.5)  # finds one dead: begins it again, and tells it too
    assert vec.get_attr("beta") == [0.5, 0.5]
    _, _, dones, infos = vec.step(np.array([4, 8]))
    assert list(dones) == [True, False] and LOST in infos[0] and len(said) == 2
    vec.close()


@pytest.mark.long
def test_a_worker_that_dies_again_and_again_ends_the_search(tiny: TinyTask, cluster: Cluster) -> None:
    def wrap(env: HSQEnv, worker: int) -> Any:
        os._exit(1)

    with pytest.raises(RuntimeError, match=f"Worker 0 has died {MOST_DEATHS} times in a row"):
        RayVecEnv(env_of(tiny), 1, lambda: wrap, say=lambda line: None)


def test_a_cluster_without_room_is_refused(tiny: TinyTask, cluster: Cluster) -> None:
    with pytest.raises(InputError, match=r"3 workers need 3 CPUs and the cluster has 2: give fewer --workers"):
        RayVecEnv(env_of(tiny), 3, lambda: keep_best)
    with pytest.raises(InputError, match=r"1 workers need 0\.5 GPUs and the cluster has 0"):
        RayVecEnv(env_of(tiny), 1, lambda: keep_best, gpus=0.5)


@pytest.mark.long
def test_a_search_on_a_cluster_survives_the_death_of_its_workers(
    tiny: TinyTask, cluster: Cluster, tmp_path: Path
) -> None:
    lines: list[str] = []

    def say(line: str) -> None:
        lines.append(line)
        if line.startswith(("episode 4 ", "episode 8 ")):
            kill(seen[0], int(line.split()[1]) // 4 - 1)

    seen: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        make = RayVecEnv.__init__

        def noted(self: Any, *arguments: Any, **named: Any) -> None:
            make(self, *arguments, **named)
            seen.append(self)

        patch.setattr(RayVecEnv, "__init__", noted)
        explorer = Explorer("dqn", seed=3, episodes=14, workers=2, surrogate=False, cluster=cluster)
        run = explorer.run
        made: list[Any] = []
        patch.setattr(Explorer, "run", lambda self, *given: made.append(run(*given)) or made[0])
        result = agents.search.search(tiny, tmp_path / "run", explorer, 6.0, finetune_steps=0, say=say)
    assert sum("died" in line for line in lines) == 2 and result["episodes"] == 14
    buffer = made[0].replay_buffer
    rows = range(buffer.pos)
    assert all(buffer.rewards[row, worker] != 0.0 for worker in range(2) for row in rows)  # no step but measured ones
    for worker in range(2):  # an episode as it was played, or the steps of the other in its place
        begin = 0
        for end in (row for row in rows if buffer.dones[row, worker]):
            shown, others = (buffer.observations[begin : end + 1, column, 0] for column in (worker, 1 - worker))
            whole = len(shown) == LAYERS and bool(np.all(np.diff(shown) > 0)) and not buffer.timeouts[end, worker]
            assert whole or np.array_equal(shown, others)
            begin = end + 1


@pytest.mark.long
def test_a_detectors_environment_reaches_its_actors(cluster: Cluster, shapes_folder: Path) -> None:
    images = {"search_images": 2, "pool_images": 2, "calibration_images": 2}
    env = HSQEnv(make_task(shapes_folder, SHIPPED_TEACHER, **images), target_ratio=6.0, step_minibatches=1)
    env.reset()
    with workers(env, 1, cluster=cluster) as one:
        assert isinstance(one, RayVecEnv)
        one.reset()
        for action in (4, 8):
            rewards = one.step(np.array([action]))[1]
            assert rewards[0] == env.step(action)[1]
