"""How a search spreads over workers: a simulation with measured times of steps, of the learner and of Ray.

python -m benchmarks.scaling  # on a machine that does nothing else

Measured here: how long the steps of an episode take, layer by layer; a gradient step of the agent and an episode of its
practice; the bytes of the environment that every node gets once; and, from ``faults.json``, what Ray adds to a step.
Steps on COCO are derived: as long as ``coco_cost_cpu.json`` says on average, spread over the layers as measured here,
and the same on a device that is assumed to be so many times as fast.

Simulated are environments side by side in the way of Stable-Baselines3: all workers step together, so that each round
takes as long as its slowest step, and the learner follows while they wait. Speedups are finished steps per second over
those of one worker. ``docs/scaling.md`` says what follows.
"""

import argparse
import copy
import json
import pickle
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hsq_env  # noqa: F401 - before torch

# isort: split
import numpy as np
import torch

from agents.algorithms import make_agent
from agents.baselines.planner import SurrogatePlanner
from agents.dyna import EACH, Dyna
from agents.keep_best import KeepBest
from agents.rollout import rollout, seed_replay
from agents.search_log import SearchLog
from benchmarks.artifacts import full_width_task
from benchmarks.coco_cost import SIDE
from benchmarks.record import RESULTS, write_result
from hsq_env.env import HSQEnv
from hsq_env.layer_info import trace_layers
from hsq_env.make import make_task

EPISODES = 5  # whose steps are timed
WORKERS = (1, 2, 4, 8, 16, 32, 64)
FASTER = 50.0  # assumed of a GPU against two cores of a processor
SIMULATED_EPISODES = 40  # of every worker
NETWORK = 1.25e9  # bytes per second of 10 gigabits
COCO_IMAGES = {"search": 64, "pool": 64, "calibration": 16}
COCO_PIXELS = 800 * 1088
LONG_EPISODES = 1000  # of the paper


@dataclass(frozen=True)
class Costs:
    """Seconds.

    :param steps: of a step, (episodes, layers)
    :param ray: that Ray adds to a step
    :param gradient: of a gradient step of the agent
    :param practice: of an episode of its practice, with its gradient steps
    """

    steps: np.ndarray
    ray: float
    gradient: float
    practice: float


def simulate(costs: Costs, workers: int, episodes: int = SIMULATED_EPISODES, seed: int = 0) -> dict[str, float]:
    """Workers in step, each at a random layer of its first episode.

    :return: steps per second, and the shares of time in which the slowest worker, any other and the learner set the
        pace
    """
    rng = np.random.default_rng(seed)
    layers = costs.steps.shape[1]
    at = rng.integers(layers, size=workers) if workers > 1 else np.zeros(1, dtype=np.int64)
    rounds = episodes * layers
    slowest = mean = learner = 0.0
    for _ in range(rounds):
        took = costs.steps[rng.integers(len(costs.steps), size=workers), at] + costs.ray
        slowest, mean = slowest + took.max(), mean + took.mean()
        at = (at + 1) % layers
        learner += workers * costs.gradient + int((at == 0).sum()) * EACH * costs.practice
    total = slowest + learner
    return {
        "steps_per_second": workers * rounds / total,
        "work": mean / total,
        "waiting": (slowest - mean) / total,
        "learning": learner / total,
    }


def measured_steps(env: HSQEnv) -> np.ndarray:
    """Seconds of every step of some random episodes, (episodes, layers)."""
    rng, found = np.random.default_rng(0), []
    for _ in range(EPISODES):
        env.reset(seed=0)
        row = []
        for _ in env.layers:
            started = time.perf_counter()
            env.step(int(rng.choice(np.flatnonzero(env.allowed()))))
            row.append(time.perf_counter() - started)
        found.append(row)
    return np.array(found)


def learner_times(env: HSQEnv) -> tuple[float, float]:
    """Seconds of a gradient step, and of an episode of practice."""
    kept = KeepBest(env)
    log = SearchLog(lambda line: None)
    steps = rollout(kept, [int(np.argmin(costs)) for costs in env.costs], "smallest", log)
    agent: Any = make_agent("dqn", kept)
    seed_replay(agent, steps)
    agent._setup_learn(len(steps))
    gradients = []
    for _ in range(200):
        started = time.perf_counter()
        agent.train(gradient_steps=1, batch_size=agent.batch_size)
        gradients.append(time.perf_counter() - started)
    dyna = Dyna(SurrogatePlanner(env, repaired=False), first=0, proposals=0.0)
    dyna.init_callback(agent)
    dyna.training_env.env_method = lambda *given, **named: []  # type: ignore[method-assign]
    dyna._on_training_start()
    practice = []
    for _ in range(12):
        started = time.perf_counter()
        dyna._practise(1)
        practice.append(time.perf_counter() - started)
    return statistics.median(gradients), statistics.median(practice)


def coco_bytes() -> int:
    """Of the environment for COCO, roughly: images in float32, and the float32 teacher with 32 million weights."""
    images = sum(COCO_IMAGES.values()) * COCO_PIXELS * 3 * 4
    return images + 4 * 32_000_000


def coco_cost(parts: dict[str, dict[str, int]]) -> dict[str, Any]:
    """Floating-point operations of a table for COCO, by part, from the layers' multiply-accumulates.

    A backward pass counts as two forward passes; training also has the teacher's forward pass.

    :param parts: images by part, "forward" and "training"
    """
    with tempfile.TemporaryDirectory() as folder:
        task = full_width_task(Path(folder) / "pictures", SIDE)
        macs = sum(info.macs for info in trace_layers(task))
    flops = {name: 2 * macs * (own["forward"] + 4 * own["training"]) for name, own in parts.items()}
    return {
        "multiply_accumulates_per_image": macs,
        "images": parts,
        "flops": flops,
        "flops_in_all": sum(flops.values()),
    }


def bytes_of_step(env: HSQEnv) -> int:
    """What a worker gives back for a step that does not end an episode, pickled."""
    env.reset(seed=0)
    return len(pickle.dumps(env.step(4)))


def rows(costs: Costs, size: float) -> dict[str, Any]:
    """All numbers of workers.

    :param size: bytes that a node gets
    """
    found = {str(count): simulate(costs, count) for count in WORKERS}
    alone = found["1"]["steps_per_second"]
    for row in found.values():
        row["speedup"] = row["steps_per_second"] / alone
    mean = float(costs.steps.mean())
    learning = costs.gradient + costs.practice * EACH / costs.steps.shape[1]
    return {
        "seconds_per_step": mean,
        "workers": found,
        "workers_where_the_learner_takes_half": (mean + costs.ray) / learning,
        "bytes_per_node": size,
        "seconds_to_send_to_a_node": size / NETWORK,
        "hours_of_1000_episodes": {
            count: LONG_EPISODES * costs.steps.shape[1] / row["steps_per_second"] / 3600 for count, row in found.items()
        },
    }


def main() -> None:
    """Measure, simulate, write."""
    argparse.ArgumentParser(description="Simulate searches over many workers.").parse_args()
    torch.set_num_threads(1)
    task = make_task()
    env = HSQEnv(task, target_ratio=10.0, table_megabytes=0.0, reward="divergence")
    steps = measured_steps(env)
    gradient, practice = learner_times(copy.copy(env))
    faults = json.loads((RESULTS / "faults.json").read_text())
    costs = Costs(steps, faults["ray_step_overhead_ms"] / 1000, gradient, practice)
    coco = json.loads((RESULTS / "coco_cost_cpu.json").read_text())
    on_coco = 3600 * coco["hours_at_most"]["search"] / 500  # evaluations
    size = float(len(pickle.dumps(env)))
    slow, fast = (
        Costs(steps * on_coco / factor / steps.mean(), costs.ray, gradient, practice) for factor in (1.0, FASTER)
    )
    figures: dict[str, Any] = {
        "ray_ms": 1000 * costs.ray,
        "gradient_step_ms": 1000 * gradient,
        "practice_episode_ms": 1000 * practice,
        "step_ms": {
            name: 1000 * float(np.quantile(steps, q)) for name, q in (("p5", 0.05), ("median", 0.5), ("p95", 0.95))
        },
        "coco_cost": coco_cost(coco["images"]),
        "bytes_of_a_step": bytes_of_step(env),
        "embedded": rows(costs, size),
        "coco_two_cores": rows(slow, coco_bytes()),
        f"coco_{FASTER:g}_times_faster": rows(fast, coco_bytes()),
    }
    for name in ("embedded", "coco_two_cores", f"coco_{FASTER:g}_times_faster"):
        speedups = {count: round(float(row["speedup"]), 1) for count, row in figures[name]["workers"].items()}
        print(f"{name}: {speedups}")
    print(f"wrote {write_result('scaling', figures)}")


if __name__ == "__main__":
    main()
