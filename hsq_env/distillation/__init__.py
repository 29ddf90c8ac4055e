"""Distillation losses: AKD."""

from hsq_env.distillation.akd import AKD

__all__ = ["AKD"]
