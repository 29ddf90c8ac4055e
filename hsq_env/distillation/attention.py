"""Attention-guided distillation: features are taken from the teacher where they are active.

The published rival that SPARK is compared with on detectors (Zhang and Ma 2021, "Improve Object Detection with
Feature-based Knowledge Distillation", ICLR, equations 1 to 3): its spatial mask, put on AKD's feature terms. The same
rule everywhere, and nothing learned.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hsq_env.distillation.akd import AKD, channel_divergence

MASK_TEMPERATURE = 0.5


@torch.no_grad()
def spatial_attention(student: Tensor, teacher: Tensor) -> Tensor:
    """Where both are active: a softmax over places of the mean magnitude over channels, times the number of places.

    :param student: features (N, C, H, W)
    :param teacher: the same shape
    :return: (N, H, W), mean 1 over every image
    """
    activity = (student.abs().mean(dim=1) + teacher.abs().mean(dim=1)).flatten(1) / 2
    mask = torch.softmax(activity / MASK_TEMPERATURE, dim=1) * activity.shape[1]
    return mask.unflatten(1, teacher.shape[2:])


@dataclass(frozen=True)
class AttentionAKD(AKD):
    """AKD whose feature terms count where features are active."""

    def _divergence(self, kind: str) -> Callable[[Tensor, Tensor], Tensor]:
        if kind != "features":
            return super()._divergence(kind)
        return lambda s, t: channel_divergence(s, t, self.feature_temperature) * spatial_attention(s, t)
