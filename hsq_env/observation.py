"""The observation: numbers in [0, 1] that say what the layer is, how sensitive it is and where the search stands."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hsq_env.choices import BITS, Choice
from hsq_env.layer_info import LayerInfo

STATIC_NAMES = (
    *("index", "weights", "weights_share", "macs_share", "out_channels", "in_channels", "kernel", "stride"),
    *("depthwise", "calls", "linear"),
    *("weight_std", "weight_peak", "weight_small", "weight_channel_spread"),
    *("input_std", "input_peak", "input_zeros"),
)
PROGRESS_NAMES = (
    *("accuracy", "divergence", "size_so_far", "weights_left", "budget_slack", "target"),
    *("last_bits", "last_sparsity", "alpha", "beta"),
)
LARGEST_LOG = 12.0  # natural logarithm that counts as 1 for widths; log10 of weight counts uses 8
LARGEST_DIVERGENCE = 5.0  # log(1 + divergence) that counts as 1
SENSITIVITY_FLOOR = 1e-6


@dataclass(frozen=True)
class Progress:
    """Where the search stands before a layer; every value in [0, 1] but accuracy, which may pass 1, and divergence.

    :param divergence: the distillation loss on the search images so far; any number from 0
    :param size_so_far: bytes of the decided layers over their float32 bytes
    :param weights_left: share of the model's weights that are still to be decided
    :param budget_slack: see ``Budget.slack``
    :param target: share of the teacher's bytes or time that the budget allows; 1 without one
    """

    accuracy: float
    divergence: float
    size_so_far: float
    weights_left: float
    budget_slack: float
    target: float
    last: Choice | None
    alpha: float
    beta: float


def observation_names(choices: Sequence[Choice], repaired: bool = False, actions: int | None = None) -> tuple[str, ...]:
    """What each number of the observation is.

    :param repaired: whether sensitivities after a repair are part of it
    :param actions: how many actions the mask speaks of; the choices when None

    >>> from hsq_env.choices import choice_grid
    >>> names = observation_names(choice_grid())
    >>> len(names), names[18], names[-1]
    (52, 'sensitivity_2bit_0', 'allowed_8bit_0.75')
    """
    label = [f"{c.bits}bit_{c.sparsity:g}" for c in choices]
    per_choice = 1 if actions is None else actions // len(choices)
    masked = label if per_choice == 1 else [f"{x}_{i}" for x in label for i in range(per_choice)]
    return (
        *STATIC_NAMES,
        *(f"sensitivity_{x}" for x in label),
        *(f"repaired_{x}" for x in label if repaired),
        *PROGRESS_NAMES,
        *(f"allowed_{x}" for x in masked),
    )


def static_features(
    infos: Sequence[LayerInfo], weights: Sequence[Tensor], *sensitivities: NDArray[np.float64]
) -> NDArray[np.float32]:
    """The part of the observation that no episode changes.

    :param weights: the teacher's, by layer
    :param sensitivities: (layers, choices), one or two
    :return: (layers, 18 + choices per table) in [0, 1]
    """
    total_weights = sum(weight.numel() for weight in weights)
    total_macs = sum(info.macs for info in infos) or 1
    rows = []
    for index, (info, weight) in enumerate(zip(infos, weights, strict=True)):
        flat = weight.detach().flatten(1).float()
        std, peak = flat.std(unbiased=False).item(), flat.abs().max().item()
        spread = flat.abs().amax(dim=1)
        rows.append(
            [
                index / max(1, len(infos) - 1),
                np.log10(weight.numel()) / 8,
                (weight.numel() / total_weights) ** 0.5,
                (info.macs / total_macs) ** 0.5,
                np.log(info.shape[0]) / LARGEST_LOG,
                np.log(info.shape[1] * info.groups) / LARGEST_LOG,
                (info.shape[2] if len(info.shape) == 4 else 1) / 7,
                info.stride / 4,
                float(info.groups > 1 and info.shape[1] == 1),
                info.calls / 8,
                float(len(info.shape) == 2),
                _unit_log(std),
                3.0 / max(3.0, peak / max(std, 1e-12)),  # 1 for flat distributions, small for long tails
                float((flat.abs() < 0.5 * std).float().mean()),
                (spread.min() / spread.max().clamp_min(1e-12)).item(),
                _unit_log(info.input_std),
                3.0
                / max(3.0, (max(high for _, high in info.input_ranges) - info.input_mean) / max(info.input_std, 1e-12)),
                info.input_zeros,
            ]
        )
    scaled = [np.log10(np.maximum(table, SENSITIVITY_FLOOR) / SENSITIVITY_FLOOR) / 8 for table in sensitivities]
    return np.concatenate([np.array(rows), *scaled], axis=1).clip(0, 1).astype(np.float32)


def observation(
    static: NDArray[np.float32], index: int, progress: Progress, allowed: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """The observation of layer ``index``.

    :param static: of ``static_features``
    :param allowed: which actions the budget leaves, (actions,)
    :return: (18 + sensitivities + 10 + actions,) in [0, 1]
    """
    moving = [
        progress.accuracy / 2,
        np.log1p(progress.divergence) / LARGEST_DIVERGENCE,
        progress.size_so_far,
        progress.weights_left,
        progress.budget_slack,
        progress.target,
        progress.last.bits / max(BITS) if progress.last else 1.0,
        progress.last.sparsity if progress.last else 0.0,
        progress.alpha,
        progress.beta,
    ]
    return np.concatenate([static[index], np.array(moving).clip(0, 1), allowed]).astype(np.float32)


def _unit_log(value: float) -> float:
    """[1e-4, 1e4] to [0, 1] on a logarithmic scale."""
    return float((np.log10(max(value, 1e-4)) + 4) / 8)


def teacher_weights(teacher: torch.nn.Module, infos: Sequence[LayerInfo]) -> list[Tensor]:
    """The teacher's weight of every layer."""
    parameters = dict(teacher.named_parameters())
    return [parameters[f"{info.name}.weight"] for info in infos]
