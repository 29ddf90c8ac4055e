"""Distillation: AKD's losses, SPARK's policy, and published rivals (wavelet, attention)."""

from hsq_env.distillation.akd import AKD, JUDGING_WEIGHTS

__all__ = ["AKD", "JUDGING_WEIGHTS"]
