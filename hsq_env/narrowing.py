"""Taking channels out of layers and norms."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from hsq_env.channels import ChannelGroup

PER_WEIGHT = ("weight", "codes", "mask", "stored_weight")
PER_OUTPUT = ("bias", "stored_bias", "base_scale", "scale_factor")


def take_out(model: nn.Module, group: "ChannelGroup", kept: Tensor) -> None:
    """Leave only the channels ``kept`` of a group, in place."""
    modules = dict(model.named_modules())
    for name in group.producers:
        _take_outputs(modules[name], kept)
    for name in group.norms:
        _take_norm(modules[name], kept)
    for name in group.consumers:
        _take_inputs(modules[name], kept)


def _take_outputs(layer: Any, kept: Tensor) -> None:
    for name in (*PER_WEIGHT, *PER_OUTPUT):
        _take(layer, name, kept, 0)
    _resize(layer, len(kept), None)


def _take_inputs(layer: Any, kept: Tensor) -> None:
    for name in PER_WEIGHT:
        _take(layer, name, kept, 1)
    _resize(layer, None, len(kept))


def _resize(layer: Any, outputs: int | None, inputs: int | None) -> None:
    kind = "channels" if isinstance(layer, nn.Conv2d) else "features"
    for way, count in (("out", outputs), ("in", inputs)):
        if count is not None:
            setattr(layer, f"{way}_{kind}", count)


def _take_norm(norm: Any, kept: Tensor) -> None:
    before = norm.num_channels if isinstance(norm, nn.GroupNorm) else norm.num_features
    for name in ("weight", "bias", "running_mean", "running_var"):
        _take(norm, name, kept, 0)
    if isinstance(norm, nn.GroupNorm):
        norm.num_groups, norm.num_channels = norm.num_groups * len(kept) // before, len(kept)
    else:
        norm.num_features = len(kept)


@torch.no_grad()
def _take(module: nn.Module, name: str, kept: Tensor, axis: int) -> None:
    value = getattr(module, name, None)
    if value is None:
        return
    taken = value.index_select(axis, kept.to(value.device))
    setattr(module, name, nn.Parameter(taken, value.requires_grad) if isinstance(value, nn.Parameter) else taken)
