"""Does the self-evaluation loop end nearer to its targets than any fixed alpha and beta?

python -m benchmarks.self_evaluation [--shard 0 --of 2]

The same DQN searches for 100 episodes without a hard budget, from the same start, once with the loop and once with each
pair of a 3x3 grid, five seeds each. The network is DnCNN with its shipped teacher on small patches: an episode has 17
steps and takes two seconds. What counts is the loop's own MSE of accuracy and ratio, over the last 20 episodes (where
the policy has ended up) and of the best plan. A run is a line of ``self_evaluation_runs.jsonl`` and is not run again;
``self_evaluation.json`` is made anew after each.
"""

import argparse
import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

import hsq_env  # noqa: F401 - before torch
from agents.explorer import Explorer
from agents.search_log import SearchLog
from benchmarks.record import RESULTS, append_line, read_lines, write_result
from hsq_env.env import HSQEnv
from hsq_env.self_evaluation import SelfEvaluation
from hsq_env.task import Task
from restorers.task import restoration_task

RUNS = RESULTS / "self_evaluation_runs.jsonl"
PROTOCOL = 1  # raised when earlier lines must not be compared with new ones; the first lines have none
SEEDS, EPISODES, LAST, WINDOW = 5, 100, 20, 4
ALPHAS, BETAS = (0.1, 0.3, 0.6), (0.5, 0.8, 0.95)
TARGET_ACCURACY, TARGET_RATIO = 0.85, 8.0  # in steps, 4 bits everywhere give about 0.8 at 7.87
START = (0.3, 0.8)  # of the loop, the environment's defaults


@dataclass(frozen=True)
class Run:
    """A pair, or None for the loop, and a seed."""

    pair: tuple[float, float] | None
    seed: int


def plan_of() -> list[Run]:
    """All runs, seed by seed."""
    pairs = [None, *itertools.product(ALPHAS, BETAS)]
    return [Run(pair, seed) for seed in range(SEEDS) for pair in pairs]


def lines() -> list[dict[str, Any]]:
    """What has been run, under the present protocol."""
    return [row for row in read_lines(RUNS) if row.get("protocol") == PROTOCOL]


def done() -> set[Run]:
    """The same as runs."""
    return {Run(None if r["pair"] is None else (r["pair"][0], r["pair"][1]), r["seed"]) for r in lines()}


def measure(run: Run, task: Task) -> dict[str, Any]:
    """One search."""
    loop = SelfEvaluation(TARGET_ACCURACY, TARGET_RATIO)
    alpha, beta = run.pair or START
    env = HSQEnv(task, step_minibatches=1, alpha=alpha, beta=beta)
    log = SearchLog(lambda line: None, merit=loop.merit_of)
    explorer = Explorer(
        "dqn",
        seed=run.seed,
        episodes=EPISODES,
        warm_start=(),
        return_to_best=False,  # where the policy ends up is what is measured
        self_evaluation=loop if run.pair is None else None,
        window=WINDOW,
    )
    explorer.run(env, log)
    merits = [loop.merit_of(e.accuracy, e.ratio) for e in log.episodes]
    last = log.episodes[-LAST:]
    return {
        "protocol": PROTOCOL,
        "pair": run.pair,
        "seed": run.seed,
        "mse_at_the_end": float(np.mean(merits[-LAST:])),
        "mse_of_the_best": min(merits),
        "accuracy_at_the_end": float(np.mean([e.accuracy for e in last])),
        "ratio_at_the_end": float(np.mean([e.ratio for e in last])),
        "alpha": env.alpha,
        "beta": env.beta,
        "mse": [round(m, 5) for m in merits],
    }


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean over seeds for the loop and for every pair, and the best pair's."""
    means: dict[str, dict[str, Any]] = {}
    for pair in [None, *itertools.product(ALPHAS, BETAS)]:
        own = [r for r in rows if (None if r["pair"] is None else tuple(r["pair"])) == pair]
        if own:
            name = "loop" if pair is None else f"alpha {pair[0]}, beta {pair[1]}"
            means[name] = {
                key: float(np.mean([r[key] for r in own])) for key in ("mse_at_the_end", "mse_of_the_best")
            } | {"seeds": [r["mse_at_the_end"] for r in own]}
    fixed = {name: row["mse_at_the_end"] for name, row in means.items() if name != "loop"}
    best = min(fixed, key=lambda name: fixed[name]) if fixed else None
    targets = {"accuracy": TARGET_ACCURACY, "ratio": TARGET_RATIO, "episodes": EPISODES, "last": LAST}
    return {"targets": targets, "best_fixed": best, "means": means, "left": len(plan_of()) - len(rows)}


def main() -> None:
    """Run what is left."""
    parser = argparse.ArgumentParser(description="The self-evaluation loop against fixed weights.")
    parser.add_argument("--shard", type=int, default=0, help="take every --of-th run, beginning with this one")
    parser.add_argument("--of", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    task = restoration_task(
        network="dncnn", patch=32, search_images=4, pool_images=8, calibration_images=2, batch_size=2
    )  # fmt: skip
    for run in plan_of()[arguments.shard :: arguments.of]:
        if run not in done():
            append_line(RUNS, measure(run, task))
            print(run, lines()[-1]["mse_at_the_end"], flush=True)
            write_result("self_evaluation", summary(lines()))
    print(f"wrote {write_result('self_evaluation', summary(lines()))}")


if __name__ == "__main__":
    main()
