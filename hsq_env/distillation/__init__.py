"""Distillation losses: AKD."""

from hsq_env.distillation.akd import AKD, JUDGING_WEIGHTS

__all__ = ["AKD", "JUDGING_WEIGHTS"]
