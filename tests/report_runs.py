"""A run folder whose figures are known, without a search."""

import json
from pathlib import Path
from typing import Any

GRID = [[2, 0.0], [4, 0.0], [8, 0.0]]


def layer(name: str, weights: int, sensitivity: list[float]) -> dict[str, Any]:
    """A layer whose bytes are those of its codes."""
    sizes = [weights * bits // 8 for bits, _ in GRID]
    return {
        "name": name,
        "weights": weights,
        "macs": weights,
        "float_bytes": 4 * weights,
        "bytes": sizes,
        "sensitivity": sensitivity,
    }


LAYERS = [
    layer("stem", 400, [0.9, 0.2, 0.01]),
    layer("body", 4000, [0.05, 0.004, 0.001]),
    layer("head", 1600, [0.3, 0.0, 0.02]),
]


def episode(source: str, ratio: float, accuracy: float, choices: list[list[float]], **more: Any) -> dict[str, Any]:
    """As a search records it."""
    divergence = 1 - accuracy
    figures = {"accuracy": accuracy, "ratio": ratio, "divergence": divergence, "total_reward": accuracy - 1}
    return {"source": source, "seconds": 1.0, "target_ratio": 8.0, "choices": choices, **figures, **more}


MIXED, SMALL = [[8, 0.0], [4, 0.0], [8, 0.0]], [[2, 0.0], [2, 0.0], [2, 0.0]]


def record() -> dict[str, Any]:
    """Of a search."""
    return {
        "dataset": "known",
        "model": "known",
        "metric": "mAP",
        "split": "test",
        "algo": "dqn",
        "seed": 3,
        "target_ratio": 8.0,
        "finetune_steps": 10,
        "teacher": {"map": 0.8, "bytes": 24_000},
        "methods": {
            "uniform8": {"map": 0.79, "bytes": 6_000, "ratio": 4.0},
            "uniform4": {"map": 0.6, "bytes": 3_000, "ratio": 8.0},
            "hsq": {"map": 0.78, "bytes": 2_400, "ratio": 10.0, "source": "dqn", "choices": MIXED},
        },
        "layers": {"choices": GRID, "rows": LAYERS},
        "diagnostics": {
            "q_values": [[0, -0.5], [100, 0.25]],
            "self_evaluation": [
                {"alpha": 0.4, "beta": 0.7, "reason": "accuracy is short", "mse": 0.02, "explore_again": False}
            ],
        },
        "environment": {"command": "hsq search --out 'a <run>'", "versions": {"torch": "2"}, "machine": {"threads": 1}},
        "history": [
            episode("ilp", 8.0, 0.99, MIXED),
            episode("dqn", 12.0, 0.5, SMALL),
            episode("dqn", 8.0, 0.98, SMALL),
            episode("dqn", 9.0, float("nan"), SMALL),
        ],
        "episodes": 3,
    }


def write_run(folder: Path, **changed: Any) -> Path:
    """A folder with that record and a training log.

    :param changed: of the record
    :return: the folder
    """
    (folder / "tensorboard").mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps({**record(), **changed}))
    log = "time/total_timesteps,rollout/exploration_rate,train/loss\n3,0.5,\n6,0.25,0.1\n9,nan,0.2\n"
    (folder / "tensorboard" / "progress.csv").write_text(log)
    return folder
