"""PPO without masks: in place of a forbidden action, the environment executes the nearest allowed one."""

from typing import Any

EPISODE = 72  # steps of a ResNet-50 detector

HYPERPARAMETERS: dict[str, Any] = {
    "n_steps": EPISODE,  # an update per episode
    "batch_size": EPISODE // 2,
    "n_epochs": 10,
    "gamma": 1.0,
    "gae_lambda": 0.95,
    "learning_rate": 1e-3,
    "ent_coef": 0.01,
    "policy_kwargs": {"net_arch": [128, 128]},
}
