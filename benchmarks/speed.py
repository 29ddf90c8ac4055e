"""What a step costs: against the reference path, with each shortcut off, against bare torch calls, and side by side.

python -m benchmarks.speed --task embedded
python -m benchmarks.speed --task bccd --dataset bccd/ --teacher bccd.safetensors

Every part is written to ``benchmarks/results/speed.json`` as soon as it is finished, and is not measured again while it
stands there, unless it is named with ``--parts``. Nothing else should run meanwhile.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

import hsq_env  # noqa: F401 - before torch
from agents.algorithms import make_agent
from agents.baselines.plans import integer_program_choices
from agents.keep_best import KeepBest
from agents.return_to_best import ReturnToBest
from agents.rollout import rollout, seed_replay, train_agent
from agents.search_log import SearchLog
from agents.workers import workers
from benchmarks.memory import MEGABYTE, Memory, status_megabytes
from benchmarks.record import RESULTS, write_result
from detectors.task import SHAPES, DetectionTask, detection_task
from hsq_env.distillation import AKD
from hsq_env.env import HSQEnv
from hsq_env.finetuning import akd_loss, training
from hsq_env.layer_info import trace_layers
from hsq_env.shortcuts import SWITCHES, Shortcuts
from hsq_env.states import Dependencies, KeptStates, Route, run
from hsq_env.student import Student

# at full width few images, so that the reference path and a hundred episodes stay affordable on one core
TASK_SETTINGS: dict[str, dict[str, int]] = {
    "embedded": {"search_images": 64, "pool_images": 64, "calibration_images": 16, "batch_size": 8},
    "bccd": {"search_images": 4, "pool_images": 8, "calibration_images": 2, "batch_size": 2},
}
FINETUNE_STEPS = {"embedded": 2, "bccd": 1}
TARGET_RATIO = {"embedded": 8.0, "bccd": 12.0}
TRAIN_EPISODES = 100
SIDE_BY_SIDE_REPEATS = {"embedded": 2, "bccd": 1}
GROWTH = {"episodes": 300, "table_megabytes": 16.0, "search_images": 2, "every": 10}
FULL_TABLE_AFTER = 100  # episodes of the growth run; the table is full long before
SAVE_EVERY = 10  # episodes of training
BETA = 0.95  # of hsq search
SAME = 1e-5
Figures = dict[str, Any]
Save = Callable[[Figures], None]


class Bench:
    """A task and the seed of everything random.

    :param name: "embedded" or "bccd"
    """

    def __init__(self, name: str, dataset: str, teacher: Path | None, seed: int = 0, **settings: int) -> None:
        self.name, self.seed = name, seed
        given: dict[str, Any] = {**TASK_SETTINGS[name], **settings}
        self.task: DetectionTask = detection_task(dataset, None, teacher, **given)
        self.layers = trace_layers(self.task)

    def env(self, shortcuts: Shortcuts | None = None, **arguments: Any) -> HSQEnv:
        """The environment, without sensitivities: they only change what an agent sees."""
        sensitivities = np.zeros((len(self.layers), 12))
        given = {"step_minibatches": FINETUNE_STEPS[self.name], "sensitivities": sensitivities, **arguments}
        return HSQEnv(self.task, shortcuts=shortcuts, **given)

    def actions(self, episode: int = 0) -> list[int]:
        """A random episode."""
        return [int(a) for a in np.random.default_rng([self.seed, episode]).integers(0, 12, len(self.layers))]


def play(env: HSQEnv, actions: list[int]) -> tuple[float, list[float], list[Any]]:
    """Seconds of an episode, its rewards, and its observations with its plan."""
    started = time.perf_counter()
    observation, info = env.reset()
    rewards, seen = [], [observation.tolist()]
    for action in actions:
        observation, reward, _, _, info = env.step(action)
        rewards.append(reward)
        seen.append(observation.tolist())
    return time.perf_counter() - started, rewards, [*seen, info["plan"].to_json()]


def warm_up(env: HSQEnv) -> None:
    """Two steps that no later episode takes, since their alpha is another."""
    env.reset(options={"alpha": 0.123})
    env.step(0)
    env.step(0)
    env.reset(options={"alpha": 0.3})


def cold(bench: Bench, save: Save) -> None:
    """One random episode by the reference path, with all shortcuts, and with each one off; results compared."""
    seconds: dict[str, list[float]] = {}
    differences: dict[str, float] = {}
    plans: list[Any] = []
    first: list[Any] = []

    def measure(name: str, shortcuts: Shortcuts) -> None:
        env = bench.env(shortcuts)
        warm_up(env)
        took, rewards, (*seen, plan) = play(env, bench.actions())
        found = np.concatenate([rewards, np.ravel(seen)])
        first.append(found)
        plans.append(plan)
        seconds.setdefault(name, []).append(round(took, 3))
        differences[name] = max(differences.get(name, 0.0), float(np.abs(found - first[0]).max()))
        print(f"{name}: {took:.1f} s, largest difference {differences[name]:g}", flush=True)
        if "reference" in seconds:
            save(figures())

    def figures() -> Figures:
        medians = {name: statistics.median(took) for name, took in seconds.items()}
        without = {s: medians[f"without_{s}"] for s in SWITCHES if f"without_{s}" in medians}
        same = all(plan == plans[0] for plan in plans) and max(differences.values()) <= SAME
        return {
            "reference_s": medians["reference"],
            "fast_s": medians["fast"],
            "speedup": medians["reference"] / medians["fast"],
            **({"without_s": without} if without else {}),
            "equal": same,
            "largest_differences": differences,
            "cold_runs_s": dict(seconds),
        }

    measure("fast", Shortcuts())
    measure("reference", Shortcuts.none())
    measure("fast", Shortcuts())
    for switch in SWITCHES:
        measure(f"without_{switch}", Shortcuts(**{switch: False}))
    measure("fast", Shortcuts())


class Floor:
    """The torch calls of a step alone: the resumed forward pass over the search images and the fine-tuning passes."""

    def __init__(self, bench: Bench) -> None:
        self.bench, self.task = bench, bench.task
        self.student = Student(self.task, bench.layers)
        self.dependencies = Dependencies(self.student.stages, self.task.calibration()[0])
        self.search, self.pool = KeptStates(self.task.evaluation("search")), KeptStates(self.task.finetuning())
        stages = self.task.stages(self.task.teacher)
        with torch.no_grad():
            self.teacher = [self.task.distilled(run(stages, {"images": b.images})) for b in self.task.finetuning()]

    def step(self, index: int, choice: Any) -> dict[str, float]:
        """Seconds of the two parts of layer ``index``'s step."""
        route = self.dependencies.route(self.student.block(self.bench.layers[index].block))
        for kept in (self.search, self.pool):
            kept.enter(route)
            states = [kept.state(self.student.stages, i) for i in range(len(kept.batches))]
            if kept is self.search:
                search_states = states
        self.student.compress(index, choice)
        finetuning = self._finetune(index, route, states)
        started = time.perf_counter()
        with torch.no_grad():
            for state in search_states:
                route.finish(self.student.stages, state)
        return {"finetuning": finetuning, "forward": time.perf_counter() - started}

    def _finetune(self, index: int, route: Route, states: list[Any]) -> float:
        modules = self.student.modules_of("block", index)
        chosen = [layer for layer in self.student.layers if layer.choice is not None]
        parameters = [
            p for m in modules for name, p in m.named_parameters(recurse=False) if name != "scale_factor" or m in chosen
        ]
        optimizer = torch.optim.Adam(parameters, lr=1e-5)
        steps = FINETUNE_STEPS[self.bench.name]
        picked = [(index * steps + i) % len(states) for i in range(steps)]
        with training(self.student, modules, parameters):
            started = time.perf_counter()
            for i in picked:
                outputs = route.finish(self.student.stages, states[i])
                loss = akd_loss(self.task, AKD(), 0.3, outputs, self.pool.batches[i], self.teacher[i])
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
            return time.perf_counter() - started


def floor(bench: Bench, save: Save) -> None:
    """Step by step along a random episode: the environment's step, then the bare calls of the same step."""
    env, bare = bench.env(), Floor(bench)
    warm_up(env)
    env.reset()
    steps = []
    for index, action in enumerate(bench.actions(1)):
        started = time.perf_counter()
        env.step(action)
        steps.append({"step": time.perf_counter() - started, **bare.step(index, env.choices[action])})
    totals = {key: round(sum(step[key] for step in steps), 3) for key in steps[0]}
    ratios = [step["step"] / (step["forward"] + step["finetuning"]) for step in steps]
    print(totals, flush=True)
    save(
        {
            "floor_ratio": totals["step"] / (totals["forward"] + totals["finetuning"]),
            "floor_ratio_median_step": statistics.median(ratios),
            "floor_s": totals,
        }
    )


def train(bench: Bench, save: Save) -> None:
    """A DQN as ``hsq search`` trains it: exploration decays over the episodes, which follow the best plan at first."""
    env = bench.env(target_ratio=TARGET_RATIO[bench.name], beta=BETA, sensitivities=None)
    steps, started = len(env.layers), 0.0

    def figures() -> Figures:
        episodes = log.episodes[1:]
        hits = [sum(visited[i : i + steps]) / steps for i in range(0, len(visited), steps)]
        return {
            "train100_fast_s": round(time.perf_counter() - started, 2),
            "train100_episodes": len(episodes),
            "train100_environment_s": round(sum(env_seconds), 2),
            "hit_rate": sum(visited) / len(visited),
            "hit_rate_per_episode": [round(h, 3) for h in hits],
            "seconds_per_episode": [e.seconds for e in episodes],
            "accuracy_per_episode": [round(e.accuracy, 4) for e in episodes],
            "accuracy_of_the_integer_program": round(log.episodes[0].accuracy, 4),
            "table_mb": env.compressor.table.bytes / MEGABYTE,
            "train100_peak_mb": round(status_megabytes("VmHWM"), 1),
        }

    def say(line: str) -> None:
        print(line, flush=True)
        done = len(log.episodes) - 1
        if done > 0 and done % SAVE_EVERY == 0:
            save(figures())

    log = SearchLog(say)
    env_seconds, visited = _watch(env)
    planned = integer_program_choices(env)
    seeds = rollout(KeepBest(env), planned, "ilp", log)
    returning = ReturnToBest(KeepBest(env), bench.seed)
    returning.know(planned, log.score(log.episodes[0]), env.target_ratio)
    agent = make_agent("dqn", returning, seed=bench.seed)
    env_seconds.clear()
    visited.clear()
    started = time.perf_counter()
    train_agent(agent, steps, "dqn", log, TRAIN_EPISODES, None, seed_replay(agent, seeds))


def _watch(env: HSQEnv) -> tuple[list[float], list[bool]]:
    """Seconds of every step of ``env`` from now on, and whether the table answered it."""
    seconds: list[float] = []
    visited: list[bool] = []
    step = env.step

    def watched(action: Any) -> Any:
        started, before = time.perf_counter(), env.steps_taken[1]
        result = step(action)
        seconds.append(time.perf_counter() - started)
        visited.append(env.steps_taken[1] > before)
        return result

    env.step = watched  # type: ignore[method-assign]
    return seconds, visited


def side_by_side(bench: Bench, save: Save) -> None:
    """Steps per second of two workers over one, a random episode each, one and two in turn; memory of all together."""
    steps = len(bench.layers)
    runs: dict[int, list[float]] = {1: [], 2: []}
    peak = 0.0
    for repeat in range(SIDE_BY_SIDE_REPEATS[bench.name]):
        for count in (1, 2):
            env = bench.env()  # nothing visited
            chosen = np.array([bench.actions(10 + 2 * repeat + w) for w in range(count)]).T
            with workers(env, count) as vec, Memory() as memory:
                vec.reset()
                started = time.perf_counter()
                for row in chosen:
                    vec.step(row if count > 1 else int(row[0]))  # type: ignore[arg-type]
                runs[count].append(steps * count / (time.perf_counter() - started))
            peak = max(peak, memory.peak)
            print(f"{count} workers: {runs[count][-1]:.2f} steps per second, {memory.peak:.0f} MB", flush=True)
        medians = {count: statistics.median(rates) for count, rates in runs.items()}
        rates = {str(count): [round(r, 3) for r in values] for count, values in runs.items()}
        save({"two_workers": medians[2] / medians[1], "steps_per_second": rates, "peak_mb": round(peak, 1)})


def growth(bench: Bench, save: Save) -> None:
    """Memory over many random episodes with a small table: flat once it is full."""
    small = Bench(bench.name, SHAPES, None, search_images=int(GROWTH["search_images"]), batch_size=2)
    env = small.env(step_minibatches=0, table_megabytes=GROWTH["table_megabytes"])
    resident, held = [], []
    for episode in range(int(GROWTH["episodes"])):
        play(env, small.actions(100 + episode))
        if (episode + 1) % int(GROWTH["every"]) == 0:
            resident.append(round(status_megabytes("VmRSS"), 1))
            held.append(round(env.compressor.table.bytes / MEGABYTE, 2))
    full = FULL_TABLE_AFTER // int(GROWTH["every"])
    grown = round(max(resident[full:]) - max(resident[:full]), 1)
    save({"growth": {**GROWTH, "resident_mb": resident, "table_mb": held}, "growth_mb_once_full": grown})


PARTS: dict[str, Callable[[Bench, Save], None]] = {
    "cold": cold,
    "floor": floor,
    "side_by_side": side_by_side,
    "train": train,
    "growth": growth,
}


def main(
    task: str = "embedded",
    dataset: str = SHAPES,
    teacher: Path | None = None,
    parts: tuple[str, ...] = (),
    seed: int = 0,
) -> None:
    """Measure and write.

    :param task: "embedded" or "bccd", which has the settings for full width
    :param dataset: "shapes", or a COCO-layout folder
    :param teacher: of that data
    :param parts: cold, floor, side_by_side, train, growth; those that are not finished yet when none are named
    :param seed: of actions and agent
    """
    torch.set_num_threads(1)
    bench = Bench(task, dataset, teacher, seed)
    wanted = parts or tuple(name for name in PARTS if name != "growth" or task == "embedded")
    for part in wanted:
        if not parts and _known(task).get("parts", {}).get(part, {}).get("finished"):
            continue
        print(f"--- {task}: {part}", flush=True)
        save = partial(_save, bench, part, time.perf_counter(), set())
        PARTS[part](bench, save)
        save({}, finished=True)


def _known(task: str) -> Figures:
    path = RESULTS / "speed.json"
    figures: Figures = json.loads(path.read_text()).get(task, {}) if path.exists() else {}
    return figures


def _save(bench: Bench, part: str, started: float, written: set[str], figures: Figures, finished: bool = False) -> None:
    """Put figures of a part into the file, in place of an earlier call's.

    :param written: names of the part's figures that this call has put there; these are added
    :param finished: whether the part has ended; others are measured anew by the next call
    """
    known = {name: _known(name) for name in TASK_SETTINGS if _known(name)}
    command = " ".join(["python -m benchmarks.speed", *(shown(a) for a in sys.argv[1:])])
    before = known.get(bench.name, {})
    written.update(figures)
    stale = set(before.get("parts", {}).get(part, {}).get("figures", ())) - written
    before = {name: value for name, value in before.items() if name not in stale}
    seconds = round(time.perf_counter() - started, 1)
    done = {"command": command, "seconds": seconds, "finished": finished, "figures": sorted(written)}
    mine = {**before, **figures, "settings": settings(bench), "parts": {**before.get("parts", {}), part: done}}
    if "train100_environment_s" in mine and "reference_s" in mine:
        agent = mine["train100_fast_s"] - mine["train100_environment_s"]
        mine["train100_reference_s"] = round(mine["reference_s"] * mine["train100_episodes"] + agent, 1)
        mine["train100_speedup"] = mine["train100_reference_s"] / mine["train100_fast_s"]
    write_result("speed", {"command": command, "notes": NOTES, **known, bench.name: mine})


NOTES = {
    "reference_s": "seconds of one random episode by the definition of a step: the student copied, every variant made "
    "anew, student and teacher run from the images for every fine-tuning pass and every accuracy",
    "fast_s": "the same episode with all shortcuts and an empty table, median of three",
    "without_s": "the same with one shortcut off",
    "equal": "whether plans are the same and rewards and observations within 1e-5; largest_differences says how close: "
    "all is the same bit for bit, but that faster-coco-eval leaves out an epsilon of pycocotools",
    "floor_ratio": "seconds of the steps of a random episode over those of their torch calls alone: the resumed "
    "forward pass over the search images, the fine-tuning passes with loss, backward pass and Adam",
    "train100_reference_s": "not run: the cold reference episode times the episodes, plus the agent's own seconds; its "
    "steps cost the same whatever was visited before",
    "hit_rate": "share of the training's steps that the table of visited prefixes answered",
    "two_workers": "steps per second of two workers over one, no prefix in common",
    "peak_mb": "of all processes together with two workers, shared pages counted once",
}


def settings(bench: Bench) -> Figures:
    """What the figures depend on."""
    return {
        **TASK_SETTINGS[bench.name],
        "finetune_steps": FINETUNE_STEPS[bench.name],
        "target_ratio_in_training": TARGET_RATIO[bench.name],
        "seed": bench.seed,
        "threads": torch.get_num_threads(),
        "image_size": list(bench.task.evaluation("search")[0].images.shape[2:]),
        "teacher_bytes": len(bench.task.teacher_file()),
    }


def shown(argument: str) -> str:
    """An argument of the command line as it is published: paths by their last name."""
    return Path(argument).name if "/" in argument else argument


if __name__ == "__main__":
    tyro.cli(main)
