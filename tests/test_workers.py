"""Environments side by side, in processes of their own."""

import os
import signal
import textwrap
import time
from multiprocessing import active_children
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import python
from stable_baselines3.common.vec_env import SubprocVecEnv
from tiny_task import TinyNet, TinyTask

from agents.keep_best import KeepBest
from agents.workers import start_method, steps_taken, workers
from detectors.errors import InputError
from hsq_env.env import HSQEnv
from hsq_env.file import load_hsq

LAYERS = 7


@pytest.fixture
def env(tiny: TinyTask) -> HSQEnv:
    made = HSQEnv(tiny, target_ratio=6.0, sensitivities=np.zeros((LAYERS, 12)))
    made.reset()
    return made


def fresh(tiny: TinyTask) -> KeepBest:
    return KeepBest(HSQEnv(tiny, target_ratio=6.0, sensitivities=np.zeros((LAYERS, 12))))


def test_workers_do_what_environments_of_their_own_do(tiny: TinyTask, env: HSQEnv, tmp_path: Path) -> None:
    actions = np.random.default_rng(0).integers(0, 12, (2 * LAYERS, 2))
    alone = [fresh(tiny), fresh(tiny)]
    with workers(env, 2) as both:
        assert isinstance(both, SubprocVecEnv) and len(active_children()) == 2
        assert np.array_equal(both.reset(), [one.reset()[0] for one in alone])
        for row in actions:
            observations, rewards, dones, infos = both.step(row)
            for worker, (one, action) in enumerate(zip(alone, row, strict=True)):
                observation, reward, done, _, info = one.step(int(action))
                assert rewards[worker] == reward and dones[worker] == done
                told = infos[worker]
                if done:
                    assert np.array_equal(told["terminal_observation"], observation)
                    assert told["plan"] == info["plan"] and told.get("model") == info.get("model")
                    observation, _ = one.reset()
                    if "model" in told:
                        (tmp_path / "model.hsq").write_bytes(told["model"])
                        model = TinyNet().requires_grad_(False)
                        assert load_hsq(tmp_path / "model.hsq", model).plan() == told["plan"]
                assert np.array_equal(observations[worker], observation)
                assert told["executed_action"] == info["executed_action"] and told["accuracy"] == info["accuracy"]
        assert [steps for steps, _ in steps_taken(both)] == [2 * LAYERS] * 2
    assert active_children() == []
    assert env.index == 0 and env.steps_taken == (0, 0)


def test_one_worker_is_the_environment_itself(env: HSQEnv) -> None:
    with workers(env, 1) as alone:
        assert isinstance(alone, KeepBest) and alone.unwrapped is env and active_children() == []
        alone.step(4)
        assert steps_taken(alone) == [(1, 0)]


@pytest.mark.parametrize("count", [0, -1])
def test_no_workers_are_refused(env: HSQEnv, count: int) -> None:
    with pytest.raises(InputError, match=f"{count} workers can do no work"), workers(env, count):
        pass


def test_workers_know_what_was_visited_before(env: HSQEnv) -> None:
    for action in [4] * LAYERS:
        env.step(action)
    with workers(env, 2) as both:
        both.reset()  # type: ignore[union-attr]
        for action in ([4, 4], [4, 4], [5, 4]):
            both.step(np.array(action))  # type: ignore[union-attr]
        assert steps_taken(both) == [(3, 2), (3, 3)]


@pytest.mark.parametrize("in_flight", [False, True])
def test_an_interruption_ends_all_processes(env: HSQEnv, in_flight: bool) -> None:
    with pytest.raises(KeyboardInterrupt), workers(env, 2) as both:
        assert isinstance(both, SubprocVecEnv)
        both.reset()
        if in_flight:
            both.step_async(np.array([4, 4]))
        raise KeyboardInterrupt
    assert active_children() == []


def test_a_dead_worker_is_told_of(env: HSQEnv) -> None:
    with pytest.raises(RuntimeError, match="A worker process died"), workers(env, 2) as both:
        assert isinstance(both, SubprocVecEnv)
        both.reset()
        victim = both.processes[0]
        assert victim.pid is not None
        os.kill(victim.pid, signal.SIGKILL)
        victim.join()
        both.step(np.array([4, 4]))
    assert active_children() == []


def test_accelerators_are_not_forked(env: HSQEnv, monkeypatch: pytest.MonkeyPatch) -> None:
    assert start_method(env) == "fork"
    monkeypatch.setattr(env.task.teacher, "parameters", lambda: iter([torch.empty(1, device="meta")]))
    assert start_method(env) == "spawn"


def test_a_parent_with_two_threads_can_have_workers() -> None:
    """Threads do not live through a fork: a worker that used the parent's pool would wait for ever."""
    done = python(
        "import os\nos.environ['OMP_NUM_THREADS'] = '2'\n"
        "import hsq_env, torch, numpy as np\nfrom tiny_task import TinyTask\nfrom agents.workers import workers\n"
        "from hsq_env.env import HSQEnv\n"
        "assert torch.get_num_threads() == 2\n"
        "(torch.ones(2000, 2000) @ torch.ones(2000, 2000)).exp()\n"
        "env = HSQEnv(TinyTask())\nenv.reset()\nenv.step(4)\n"
        "with workers(env, 2) as both:\n    both.reset()\n"
        "    for _ in range(8):\n        both.step(np.array([4, 1]))\n"
        "print('done')\n"
    )
    assert done.returncode == 0 and done.stdout == "done\n", done.stderr


def test_workers_draw_targets_of_their_own(tiny: TinyTask) -> None:
    env = HSQEnv(tiny, target_ratio=[4.0, 5.0, 6.0, 7.0, 8.0], step_minibatches=0, sensitivities=np.zeros((LAYERS, 12)))
    drawn: list[list[float]] = []
    for _ in range(2):
        env.reset(seed=3)
        with workers(env, 2) as both:
            assert isinstance(both, SubprocVecEnv)
            drawn.append([])
            for _ in range(6):
                both.reset()
                drawn[-1] += both.get_attr("target_ratio")
    assert drawn[0] == drawn[1] and drawn[0][::2] != drawn[0][1::2]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="asks /proc which processes there are")
def test_workers_end_with_a_parent_that_is_killed() -> None:
    script = """
        import os, signal, time
        import numpy as np
        from agents.workers import LOOKS, workers
        from hsq_env.env import HSQEnv
        from tiny_task import TinyTask

        parent = os.fork()
        if not parent:
            env = HSQEnv(TinyTask(), target_ratio=6.0, step_minibatches=0, sensitivities=np.zeros((7, 12)))
            with workers(env, 2) as both:
                both.reset()
                print(*(process.pid for process in both.processes), flush=True)
                os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(parent, 0)
    """
    found = python(textwrap.dedent(script))
    children = [int(number) for number in found.stdout.split()]
    assert len(children) == 2
    deadline = time.monotonic() + 60
    while any(lives(child) for child in children) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(lives(child) for child in children)


def lives(process: int) -> bool:
    """Whether it is there and no zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
