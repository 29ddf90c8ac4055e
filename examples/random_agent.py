"""The environment by itself: an agent that draws among the choices that the budget still allows.

    python examples/random_agent.py --env HSQ-DnCNN-v0 --target-ratio 8 --episodes 2

Every step decides the bits and the sparsity of one layer. ``info["action_mask"]`` says which choices can still meet
the target; an action that cannot is replaced by the nearest that can, and ``info["executed_action"]`` says by which.
"""

import argparse
from collections.abc import Sequence
from typing import Any

import gymnasium as gym

import hsq_env  # noqa: F401 - registers the ids


def play(env: gym.Env[Any, Any], seed: int) -> tuple[float, dict[str, Any]]:
    """One episode; what it earned, and the last step's information."""
    _, info = env.reset(seed=seed)
    env.action_space.seed(seed)
    total, ended = 0.0, False
    while not ended:
        action = env.action_space.sample(info["action_mask"].astype("int8"))
        _, reward, ended, _, info = env.step(action)
        total += float(reward)
    return total, info


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Play and print; the last information of every episode."""
    parser = argparse.ArgumentParser(description="Draw plans at random.")
    parser.add_argument("--env", default="HSQ-DnCNN-v0", help="an id, see the README")
    parser.add_argument("--target-ratio", type=float, default=8.0, help="teacher bytes over student bytes")
    parser.add_argument("--episodes", type=int, default=2)
    parser.add_argument("--search-images", type=int, default=16, help="that accuracy is measured on")
    arguments = parser.parse_args(argv)

    env = gym.make(arguments.env, target_ratio=arguments.target_ratio, search_images=arguments.search_images)
    found = []
    for seed in range(arguments.episodes):
        total, info = play(env, seed)
        print(f"reward {total:.3f}, accuracy {info['accuracy']:.4f} at {info['ratio']:.2f}x")
        found.append(info)
    plan = max(found, key=lambda info: info["accuracy"])["plan"]
    for layer, choice in zip(plan.layers, plan.choices, strict=True):
        print(f"{layer}: {choice.bits} bits, {choice.sparsity:.0%} zeros")
    return found


if __name__ == "__main__":
    main()
