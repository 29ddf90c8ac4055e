"""Attention-guided distillation: features are taken from the teacher where they are active.

The published rival that SPARK is compared with on detectors is the spatial mask of Zhang and Ma 2021 ("Improve Object
Detection with Feature-based Knowledge Distillation", ICLR, equations 1 to 3), put on AKD's feature terms: the same rule
everywhere, and nothing learned. Their channel mask, their loss on the masks themselves and their non-local term are not
part of it. Activities are divided by their mean, without which the softmax would see a single place where features are
large.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hsq_env.distillation.akd import AKD, channel_divergence

MASK_TEMPERATURE = 0.5
SMALLEST_ACTIVITY = 1e-6


@torch.no_grad()
def spatial_attention(student: Tensor, teacher: Tensor) -> Tensor:
    """Where both are active: a softmax over places of the relative magnitude, times the number of places.

    The magnitude is the mean over channels, relative to the image's mean.

    :param student: features (N, C, H, W)
    :param teacher: the same shape
    :return: (N, H, W), mean 1 over every image
    """
    activity = (student.abs().mean(dim=1) + teacher.abs().mean(dim=1)).flatten(1) / 2
    relative = activity / activity.mean(dim=1, keepdim=True).clamp_min(SMALLEST_ACTIVITY)
    mask = torch.softmax(relative / MASK_TEMPERATURE, dim=1) * activity.shape[1]
    return mask.unflatten(1, teacher.shape[2:])


@dataclass(frozen=True)
class AttentionAKD(AKD):
    """AKD whose feature terms count where features are active."""

    def _divergence(self, kind: str) -> Callable[[Tensor, Tensor], Tensor]:
        if kind != "features":
            return super()._divergence(kind)
        return lambda s, t: channel_divergence(s, t, self.feature_temperature) * spatial_attention(s, t)
