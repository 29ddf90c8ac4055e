"""Train any SB3 agent on an HSQ environment: the plain script, to be read and copied.

python -m agents.train --algo dqn --env HSQ-ResNet50-v0 --timesteps 5000
"""

import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import tyro
from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.evaluation import evaluate_policy as evaluate_masked
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor

import hsq_env  # noqa: F401 - registers the ids
from agents.algorithms import ALGORITHMS, action_space_of, make_agent
from detectors.errors import InputError


def train(
    algo: str = "dqn",
    env: str = "HSQ-ResNet50-v0",
    timesteps: int = 5000,
    target_ratio: float | None = None,
    seed: int = 0,
    out: Path = Path("policy.zip"),
    eval_episodes: int = 1,
) -> float:
    """Train, save, load and evaluate a policy.

    :param algo: dqn, qrdqn, maskable_ppo, ppo (discrete actions), sac, td3, ddpg, haq or amc (continuous actions)
    :param env: a registered id
    :param timesteps: environment steps, one layer each
    :param target_ratio: teacher bytes over student bytes that every plan must reach
    :param seed: of the agent
    :param out: where the policy is saved
    :param eval_episodes: episodes of the evaluation, with deterministic actions
    :return: mean return of the evaluation
    """
    if out.exists():
        raise InputError(f"{out} exists already: give another file with --out.")
    made = gym.make(env, action_space=action_space_of(algo), target_ratio=target_ratio)
    monitored = Monitor(made)

    agent = make_agent(algo, monitored, seed=seed, verbose=1)
    agent.learn(total_timesteps=timesteps, log_interval=1, progress_bar=False)
    agent.save(out)

    loaded = ALGORITHMS[algo].kind.load(out, env=monitored)
    evaluated: Any = evaluate_masked if isinstance(loaded, MaskablePPO) else evaluate_policy
    mean, _ = evaluated(loaded, monitored, n_eval_episodes=eval_episodes, deterministic=True)
    print(f"mean return over {eval_episodes} episodes: {float(mean):.4f}")
    return float(mean)


def main() -> None:
    """Command line."""
    try:
        tyro.cli(train)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error


if __name__ == "__main__":
    main()
