"""A stock DQN of Stable-Baselines3 in twenty lines: it trains, is saved, and decides a plan by itself.

    python examples/sb3_dqn.py HSQ-DnCNN-v0 400 dqn.zip

The DQN knows nothing of masks: it sees them in the observation, and the environment executes the nearest choice that
is allowed. ``hsq search`` has a DQN with masks, a replay that begins with good plans, and more (``agents/``).
"""

import sys

import gymnasium as gym
from stable_baselines3 import DQN

import hsq_env  # noqa: F401 - registers the ids


def main(env_id: str = "HSQ-DnCNN-v0", steps: str = "400", out: str = "dqn.zip") -> float:
    """Train, play one episode greedily, and save."""
    env = gym.make(env_id, target_ratio=8.0, search_images=16, reward="divergence", alpha=0.0, beta=1.0)
    model = DQN("MlpPolicy", env, learning_rate=1e-3, buffer_size=20_000, learning_starts=100, gamma=1.0,
                train_freq=1, target_update_interval=100, exploration_fraction=0.5, seed=0, verbose=1)  # fmt: skip
    model.learn(int(steps), log_interval=10)
    model.save(out)
    observation, info = env.reset()
    while "plan" not in info:
        action, _ = model.predict(observation, deterministic=True)
        observation, _, _, _, info = env.step(action)
    print(f"accuracy {info['accuracy']:.4f} at {info['ratio']:.2f}x: {info['plan']}")
    return float(info["ratio"])


if __name__ == "__main__":
    main(*sys.argv[1:])
