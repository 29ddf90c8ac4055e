"""Maskable PPO: as ``agents/ppo.py``, with the masks of ``env.action_masks()``."""

from typing import Any

from agents.ppo import HYPERPARAMETERS as PPO_HYPERPARAMETERS

HYPERPARAMETERS: dict[str, Any] = {**PPO_HYPERPARAMETERS}
