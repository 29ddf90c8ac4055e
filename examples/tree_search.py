"""A tree search with ``fork``: beam search over the layers, started from a greedy plan, which it can only improve on.

    python examples/tree_search.py --env HSQ-DnCNN-v0 --target-ratio 8 --width 2 --branches 2

A node of the tree is an environment in the middle of an episode. ``fork`` copies it in no time: the copy shares what
no step changes, and what was measured once for the same choices in the same order is looked up. Nodes are compared by
their divergence so far plus what the sensitivities say of the layers to come.
"""

import argparse
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from hsq_env import HSQEnv

PRICES = (0.0, *np.geomspace(1e-10, 1e2, 600))  # of a byte, in divergence


def greedy(env: HSQEnv) -> tuple[list[int], float, list[int]]:
    """The plan for the layers to come that does least damage by the sensitivities and fits what the budget has left.

    :return: the choice of each, the damage of all, and all choices of the first from the best on
    """
    damage, bytes_ = env.sensitivities[env.index :], env.costs[env.index :]
    rows = np.arange(len(damage))
    for price in PRICES:  # as low as possible
        paid = damage + price * bytes_
        choices = paid.argmin(axis=1)
        if bytes_[rows, choices].sum() <= env.budget.limit - env.spent:
            break
    return choices.tolist(), float(damage[rows, choices].sum()), paid[:1].argsort(axis=1).ravel().tolist()


def play_greedy(env: HSQEnv) -> dict[str, Any]:
    """The greedy plan as it is; the last step's information."""
    _, info = env.reset()
    for choice in greedy(env)[0]:
        info = env.step(choice)[4]
    return info


def beam_search(env: HSQEnv, width: int, branches: int) -> dict[str, Any]:
    """Keep the ``width`` most promising nodes of every layer, each with its ``branches`` best choices.

    :return: the last step's information of the best plan
    """
    best = play_greedy(env)
    env.reset()
    beam = [env.fork()]
    for _ in env.layers:
        grown: list[tuple[float, HSQEnv, dict[str, Any]]] = []
        for node in beam:
            allowed = node.allowed()
            for choice in [c for c in greedy(node)[2] if allowed[c]][:branches]:
                child = node.fork()
                info = child.step(choice)[4]
                grown.append((info["divergence"] + greedy(child)[1], child, info))
        grown.sort(key=lambda row: row[0])
        beam = [child for _, child, _ in grown[:width]]
    return min(best, grown[0][2], key=lambda info: info["divergence"])


def main(argv: Sequence[str] | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Search and print; the greedy plan's last information and that of the plan found."""
    parser = argparse.ArgumentParser(description="Search a plan with a beam.")
    parser.add_argument("--env", default="HSQ-DnCNN-v0", help="an id with discrete actions, see the README")
    parser.add_argument("--target-ratio", type=float, default=8.0, help="teacher bytes over student bytes")
    parser.add_argument("--width", type=int, default=2, help="nodes that are kept at every layer")
    parser.add_argument("--branches", type=int, default=2, help="choices that are tried at each of them")
    parser.add_argument("--search-images", type=int, default=16, help="that accuracy is measured on")
    arguments = parser.parse_args(argv)

    settings = {"target_ratio": arguments.target_ratio, "search_images": arguments.search_images, "alpha": 0.0}
    env = gym.make(arguments.env, **settings).unwrapped
    assert isinstance(env, HSQEnv)
    first, found = play_greedy(env), beam_search(env, arguments.width, arguments.branches)
    for name, info in (("greedy", first), ("beam search", found)):
        accuracy, divergence = info["accuracy"], info["divergence"]
        print(f"{name}: divergence {divergence:.4f}, accuracy {accuracy:.4f} at {info['ratio']:.2f}x")
    return first, found


if __name__ == "__main__":
    main()
