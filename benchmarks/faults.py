"""What searches survive: kills at random moments, torn checkpoints, workers that die; and what Ray's workers cost.

python -m benchmarks.faults                # kills and resumes, on the tiny task of the tests
python -m benchmarks.faults --embedded     # the same once on the embedded task
python -m benchmarks.faults --ray          # on a machine that does nothing else: two cores, no other load

Each part writes its own figures into ``benchmarks/results/faults.json`` and leaves the others'.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hsq_env  # noqa: F401 - before torch

# isort: split
import numpy as np
import torch

from agents.explorer import Explorer
from agents.search import search
from benchmarks.record import RESULTS, write_result
from hsq_env.env import HSQEnv
from hsq_env.make import make_task
from hsq_env.task import Task

TESTS = Path(__file__).parent.parent / "tests"
THREE, EPISODES = 10, 24  # searches that are killed three times each
CYCLES = 50  # kills of one search, and as many with a damaged checkpoint
INTERVAL = 1.0  # seconds between checkpoints
CYCLE_SECONDS = (0.5, 4.0)  # from a resume to the next kill
KILL_EVERY, KILLED_FOR = 20.0, 130.0  # seconds, of Ray's workers
SPEED_STEPS = 72  # that one worker takes in a round of the throughput
ROUNDS = 3
OVERHEAD_STEPS, OVERHEAD_ROUNDS = 210, 5
FAILED = 3  # exit status of a child that could not go on


def tiny_task() -> Task:
    """The task of the tests."""
    sys.path.insert(0, str(TESTS))
    from tiny_task import TinyTask  # type: ignore[import-not-found]

    made: Task = TinyTask()
    return made


def run_search(task: Task, out: Path, explorer: Explorer, resume: bool, settings: dict[str, Any]) -> None:
    """A search that says what it does to a file beside its folder."""
    with open(out.with_suffix(".log"), "a") as log:
        search(
            task,
            out,
            explorer,
            resume=resume,
            checkpoint_minutes=INTERVAL / 60,
            say=lambda line: print(line, file=log, flush=True),
            **settings,
        )


def in_child(work: Callable[[], None], seconds: float | None) -> tuple[int | None, float]:
    """Do something in a forked process, and kill it after so many seconds.

    :return: its exit status, None if it was killed; and ``time.time()`` of the end
    """
    pid = os.fork()
    if pid == 0:
        status = FAILED
        try:
            torch.set_num_threads(1)
            work()
            status = 0
        except BaseException as error:
            print(f"child: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        finally:
            os._exit(status)
    deadline = None if seconds is None else time.monotonic() + seconds
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status), time.time()
        if deadline is not None and time.monotonic() >= deadline:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return None, time.time()
        time.sleep(0.005)


def fingerprint(run: Path) -> str:
    """A hash of all that a search has found: plans, rewards, models, replay and weights, without clocks."""
    result = json.loads((run / "result.json").read_text())
    history = [{k: v for k, v in row.items() if k != "seconds"} for row in result["history"]]
    kept = [result[name] for name in ("methods", "candidates", "steps", "visited_steps", "diagnostics", "sha256")]
    digest = hashlib.sha256(json.dumps([history, kept]).encode())
    with zipfile.ZipFile(run / "policy.zip") as file, file.open("policy.pth") as weights:
        for name, tensor in torch.load(weights, weights_only=True).items():
            digest.update(name.encode() + tensor.numpy().tobytes())
    with np.load(run / "replay.npz") as replay:
        for name in replay.files:
            digest.update(replay[name].tobytes())
    return digest.hexdigest()


def three_kills(task: Task, folder: Path, number: int, episodes: int, settings: dict[str, Any]) -> bool:
    """Whether a search that is killed at three random moments ends like one that ran through."""
    rng = random.Random(number)
    explorer = Explorer("dqn", seed=number, episodes=episodes)
    through, killed = folder / f"through{number}", folder / f"killed{number}"
    started = time.monotonic()
    in_child(lambda: run_search(task, through, explorer, False, settings), None)
    seconds = time.monotonic() - started
    for kill in range(4):
        moment = None if kill == 3 else rng.uniform(0.02, 0.6) * seconds
        resume = (killed / "checkpoints" / "settings.json").is_file()
        if not resume:
            shutil.rmtree(killed, ignore_errors=True)
        status, _ = in_child(lambda r=resume: run_search(task, killed, explorer, r, settings), moment)  # type: ignore[misc]
        if status == FAILED:
            return False
        if status == 0:
            break
    return fingerprint(through) == fingerprint(killed)


def damage(path: Path, rng: random.Random) -> None:
    """Tear a file off somewhere, or turn a bit in it."""
    data = bytearray(path.read_bytes())
    if rng.random() < 0.5:
        del data[rng.randrange(len(data)) :]
    else:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(bytes(data))


def measured_twice(run: Path) -> int:
    """Outcomes that the file of a search holds more than once."""
    lines = (run / "checkpoints" / "outcomes.txt").read_text().split()
    keys = [line[:32] for line in lines]
    return len(keys) - len(set(keys))


def cycles(task: Task, folder: Path, settings: dict[str, Any], episodes: int = 100_000) -> dict[str, Any]:
    """Kill and resume one search again and again; then tear its newest checkpoint after every kill too."""
    rng = random.Random(0)
    # without the surrogate, whose practice before the first step would take longer than a cycle
    run, explorer = folder / "cycles", Explorer("dqn", seed=0, episodes=episodes, surrogate=False)
    lost, ages, twice, harmed = 0, [], 0, 0
    for cycle in range(2 * CYCLES):
        resume, began = (run / "checkpoints" / "settings.json").is_file(), time.time()
        status, killed_at = in_child(
            lambda r=resume: run_search(task, run, explorer, r, settings),  # type: ignore[misc]
            rng.uniform(*CYCLE_SECONDS),
        )
        lost += status == FAILED
        files = sorted((run / "checkpoints").glob("*.checkpoint"))
        # the first step of a resumed search writes one: without a new one there was no step that could be lost
        if files and files[-1].stat().st_mtime > began:
            ages.append(killed_at - files[-1].stat().st_mtime)
        if cycle >= CYCLES and len(files) == 2:
            damage(files[-1], rng)
            harmed += 1
        twice = max(twice, measured_twice(run)) if (run / "checkpoints" / "outcomes.txt").is_file() else twice
        print(f"cycle {cycle + 1}: {len(files)} checkpoints, {lost} lost", flush=True)
    lines = run.with_suffix(".log").read_text().splitlines()
    passed_over = sum("is damaged: going on from the checkpoint before it" in line for line in lines)
    return {
        "kills": 2 * CYCLES,
        "damaged_checkpoints": harmed,
        "passed_over": passed_over,
        "lost_runs": lost,
        "interval_seconds": INTERVAL,
        "seconds_since_checkpoint": {"median": statistics.median(ages), "largest": max(ages)},
        "steps_measured_twice": twice,
    }


def killed_thrice(task: Task, settings: dict[str, Any]) -> dict[str, Any]:
    """Several searches that are killed three times each."""
    with tempfile.TemporaryDirectory() as made:
        equal = []
        for number in range(THREE):
            equal.append(three_kills(task, Path(made), number, EPISODES, settings))
            print(f"killed three times, search {number}: {'equal' if equal[-1] else 'NOT EQUAL'}", flush=True)
    return {"resume_equal": all(equal), "resumed_searches": len(equal)}


def merged(**figures: Any) -> None:
    """Add a part's figures to the result."""
    path = RESULTS / "faults.json"
    before = json.loads(path.read_text()) if path.is_file() else {}
    for own in ("versions", "machine", "command"):
        before.pop(own, None)
    commands = {**before.pop("commands", {}), **{name: " ".join(sys.argv[1:]) for name in figures}}
    print(f"wrote {write_result('faults', {**before, **figures, 'commands': commands})}")


def embedded_equal() -> bool:
    """The same on the embedded task, in small."""
    task = make_task(search_images=16, pool_images=16, calibration_images=4)
    settings: dict[str, Any] = {"target_ratio": 10.0, "finetune_steps": 10, "finalists": 1}
    with tempfile.TemporaryDirectory() as made:
        return three_kills(task, Path(made), 0, 12, settings)


# ---- Ray


def timed_steps(vec: Any, steps: int, seed: int) -> float:
    """Seconds of some steps of every worker, with plans that nobody has tried."""
    rng = np.random.default_rng(seed)
    vec.reset()
    started = time.monotonic()
    for _ in range(steps):
        vec.step(rng.integers(0, 12, vec.num_envs))
    return time.monotonic() - started


def throughput() -> dict[str, Any]:
    """How much more two workers do than one, on the embedded task."""
    from agents.ray_workers import LOCAL, RayVecEnv, connect, disconnect
    from agents.workers import keep_best

    env = HSQEnv(make_task(search_images=32, pool_images=16, calibration_images=4), target_ratio=10.0)
    connect(LOCAL, 3)
    try:
        one, two = (RayVecEnv(env, count, lambda: keep_best) for count in (1, 2))
        ratios, seconds = [], []
        for number in range(ROUNDS + 1):
            took = {vec.num_envs: timed_steps(vec, SPEED_STEPS, 10 * number + vec.num_envs) for vec in (one, two)}
            ratios.append(2 * took[1] / took[2])
            seconds.append(took[1] / SPEED_STEPS)
            print(f"two workers do {ratios[-1]:.2f} times what one does", flush=True)
        for vec in (one, two):
            vec.close()
    finally:
        disconnect()
    return {"times": statistics.median(ratios[1:]), "rounds": ratios[1:], "step_ms": 1000 * statistics.median(seconds)}


def _own_seconds(actor: Any, seed: int) -> float:
    """In an actor: the mean of some steps of its environment, which asks nobody else."""
    env, rng = actor.env.unwrapped, np.random.default_rng(seed)
    outcomes, env.compressor._outcomes = env.compressor._outcomes, None
    try:
        actor.env.reset()
        started = time.perf_counter()
        for _ in range(OVERHEAD_STEPS):
            if actor.env.step(int(rng.integers(0, 12)))[2]:
                actor.env.reset()
        return (time.perf_counter() - started) / OVERHEAD_STEPS
    finally:
        env.compressor._outcomes = outcomes


def _seconds_through(vec: Any, seed: int) -> float:
    """The mean of as many steps by way of Ray."""
    rng = np.random.default_rng(seed)
    vec.reset()
    started = time.perf_counter()
    for _ in range(OVERHEAD_STEPS):
        vec.step(np.array([int(rng.integers(0, 12))]))
    return (time.perf_counter() - started) / OVERHEAD_STEPS


def overhead(task: Task, outcomes: Path | None) -> dict[str, float]:
    """Milliseconds that a step takes longer than the environment's own time in that actor.

    :param outcomes: a file to share them through; None for an actor
    :return: of steps that compute something, look for it with others first and tell them; and of steps that the table
        answers
    """
    import ray

    from agents.ray_workers import LOCAL, RayVecEnv, connect, disconnect
    from agents.workers import keep_best

    connect(LOCAL, 1)
    try:
        env = HSQEnv(task, target_ratio=6.0)
        vec = RayVecEnv(env, 1, lambda: keep_best, outcomes=outcomes)
        rounds: dict[str, list[float]] = {"measured": [], "visited": []}
        for number in range(OVERHEAD_ROUNDS):
            for name, own, through in (("measured", 2 * number, 2 * number + 1), ("visited", 2 * number, 2 * number)):
                inside = ray.get(vec._actors[0].__ray_call__.remote(_own_seconds, own))
                rounds[name].append(_seconds_through(vec, through) - inside)
        found = {name: 1000 * statistics.median(seconds) for name, seconds in rounds.items()}
        vec.close()
    finally:
        disconnect()
    return found


def killed_workers(task: Task) -> dict[str, Any]:
    """A search over two nodes whose workers are killed every ``KILL_EVERY`` seconds."""
    import ray
    from ray.cluster_utils import Cluster as Nodes

    from agents.ray_workers import RayVecEnv, connect, disconnect
    from agents.workers import Cluster

    nodes = Nodes(initialize_head=True, head_node_args={"num_cpus": 1})
    nodes.add_node(num_cpus=1)
    connect(nodes.address, 2)
    truth: set[tuple[bytes, int, float]] = set()
    times: list[float] = []
    deaths: list[float] = []
    taken: list[int] = []
    step_wait, rng = RayVecEnv.step_wait, random.Random(0)
    started = 0.0  # with the first step

    def noted(self: Any) -> Any:
        nonlocal started
        started = started or time.monotonic()
        before = self._observations.copy()
        observations, rewards, dones, infos = step_wait(self)
        now = time.monotonic() - started
        for worker, info in enumerate(infos):
            if not info.get("worker_lost"):
                truth.add((before[worker].tobytes(), int(info["executed_action"]), float(np.float32(rewards[worker]))))
        times.append(now)
        if now < KILLED_FOR and now > KILL_EVERY * (len(deaths) + 1):
            worker = rng.randrange(2)
            os.kill(ray.get(self._actors[worker].__ray_call__.remote(lambda actor: os.getpid())), signal.SIGKILL)
            deaths.append(now)
        return observations, rewards, dones, infos

    RayVecEnv.step_wait = noted  # type: ignore[method-assign]
    made: list[Any] = []
    run = Explorer.run

    def kept(self: Explorer, *given: Any) -> Any:
        made.append(run(self, *given))
        taken.append(made[0].num_timesteps)
        return made[0]

    Explorer.run = kept  # type: ignore[method-assign, assignment]
    lines: list[str] = []
    explorer = Explorer(
        "dqn", episodes=None, time_budget=KILLED_FOR + 30, workers=2, surrogate=False, cluster=Cluster(nodes.address)
    )
    try:
        with tempfile.TemporaryDirectory() as folder:
            result = search(task, Path(folder) / "run", explorer, 6.0, finetune_steps=0, say=lines.append)
    finally:
        RayVecEnv.step_wait, Explorer.run = step_wait, run  # type: ignore[method-assign]
        disconnect()
        nodes.shutdown()
    buffer = made[0].replay_buffer
    held = range(buffer.buffer_size if buffer.full else buffer.pos)
    wrong = 0
    for row in held:
        for worker in range(buffer.n_envs):
            key = (
                buffer.observations[row, worker].tobytes(),
                int(buffer.actions[row, worker, 0]),
                float(buffer.rewards[row, worker]),
            )
            wrong += key not in truth
    whole = [t for t in times if t < deaths[0]]
    after = [t for t in times if t > KILLED_FOR]
    return {
        "workers_killed": len(deaths),
        "begun_again": sum("died" in line for line in lines),
        "episodes": result["episodes"],
        "steps_in_replay": len(held) * buffer.n_envs,
        "steps_not_as_measured": wrong,
        "steps_per_second_before": per_second(whole, buffer.n_envs),
        "steps_per_second_after": per_second(after, buffer.n_envs),
    }


def per_second(times: Sequence[float], workers: int) -> float:
    """Steps, of the moments at which rounds of a step of each worker ended."""
    return workers * (len(times) - 1) / (times[-1] - times[0])


def main() -> None:
    """Run a part."""
    parser = argparse.ArgumentParser(description="Kill searches and see what is left of them.")
    parser.add_argument("--embedded", action="store_true", help="on the embedded task, once")
    parser.add_argument("--ray", action="store_true", help="Ray's workers instead")
    parser.add_argument("--ray-speed", action="store_true", help="the last parts of --ray alone")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.embedded:
        merged(embedded_resume_equal=embedded_equal())
        return
    task = tiny_task()
    if arguments.ray or arguments.ray_speed:
        os.environ["PYTHONPATH"] = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])  # of actors
    if arguments.ray:
        merged(killed_workers=killed_workers(task))
    if arguments.ray or arguments.ray_speed:
        with tempfile.TemporaryDirectory() as made:
            extra = overhead(task, Path(made) / "outcomes")
        merged(ray_step_overhead_ms=max(extra.values()), ray_step_overhead=extra)
        merged(ray_step_overhead_through_an_actor=overhead(task, None))
        found = throughput()
        merged(ray_two_workers=found["times"], ray_throughput=found)
        return
    settings: dict[str, Any] = {"target_ratio": 6.0, "finetune_steps": 3}
    with tempfile.TemporaryDirectory() as made:
        merged(**cycles(task, Path(made), settings))
    merged(**killed_thrice(task, settings))


if __name__ == "__main__":
    main()
