"""Searches without reinforcement learning, for comparison and to start from."""

from agents.baselines.proposers import BASELINES, Proposer

__all__ = ["BASELINES", "Proposer"]
