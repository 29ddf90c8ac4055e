"""Convolutions and linear layers that can carry a choice."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hsq_env.choices import Choice
from hsq_env.pruning import magnitude_mask
from hsq_env.quantizers import ActivationRange, best_scale, dequantize, fake_quantize, quantize, storable, weight_levels


class CompressedLayer(nn.Module):
    """What ``CompressedConv2d`` and ``CompressedLinear`` share: latent weights, and what a choice makes of them.

    Without a choice the layer computes as the teacher's does. With one it computes, outside of fine-tuning, with the
    very weights that the file will hold; during fine-tuning with fake-quantized latent weights, so that gradients
    reach them. ``scale_factor`` is learned relative to the scale that the choice began with.
    """

    weight: Tensor
    bias: Tensor | None
    base_scale: Tensor
    mask: Tensor | None
    codes: Tensor | None
    _stored_weight: Tensor | None
    _stored_bias: Tensor | None

    def init_compression(self) -> None:
        """Add the state of a choice to a layer that has its weights already."""
        self.choice: Choice | None = None
        self.activations: tuple[ActivationRange, ...] = ()
        self._call = 0
        self.tuning = False
        ones = torch.ones(self.weight.shape[0], device=self.weight.device)
        self.scale_factor = nn.Parameter(ones, requires_grad=False)
        self.register_buffer("base_scale", ones.clone())
        for name in ("mask", "codes", "_stored_weight", "_stored_bias"):  # follow the model to its device
            self.register_buffer(name, None, persistent=False)

    @torch.no_grad()
    def compress(self, choice: Choice, activations: tuple[ActivationRange, ...], pattern: str) -> None:
        """Prune, then quantize the survivors, starting from the latent weights as they are.

        :param activations: the input's range at each call in a forward pass; empty for float32 activations
        """
        self.choice, self.activations, self._call = choice, activations, 0
        self.mask = magnitude_mask(self.weight, choice.sparsity, pattern)
        self.base_scale.copy_(best_scale(self.weight, self.mask, weight_levels(choice), choice.bits))
        self.scale_factor.fill_(1.0)
        self.store()

    def scale(self) -> Tensor:
        """The scales (C,) as the file holds them."""
        return storable(self.base_scale * self.scale_factor)

    @torch.no_grad()
    def store(self) -> None:
        """Round the latent weights and the bias to what the file holds; a no-op without a choice."""
        if self.choice is None:
            return
        levels, scale = weight_levels(self.choice), self.scale()
        self.codes = quantize(self.weight, scale, levels)
        self._set_stored(dequantize(self.codes, scale, levels))

    def _set_stored(self, weight: Tensor) -> None:
        self._stored_weight = weight if self.mask is None else weight.masked_fill(~self.mask, 0.0)
        self._stored_bias = None if self.bias is None else self.bias.detach().half().float()

    @torch.no_grad()
    def load_stored(
        self,
        choice: Choice,
        activations: tuple[ActivationRange, ...],
        codes: Tensor,
        mask: Tensor | None,
        scale: Tensor,
    ) -> None:
        """Take the codes (as ``weight``'s shape, int8), mask and scales of a file; ``bias`` must be set before."""
        device = self.weight.device
        self.choice, self.activations, self._call = choice, activations, 0
        self.codes, self.mask = codes.to(device), None if mask is None else mask.to(device)
        self.base_scale.copy_(scale)
        self.scale_factor.fill_(1.0)
        self._set_stored(dequantize(self.codes, scale.to(device), weight_levels(choice)))
        assert self._stored_weight is not None
        self.weight.copy_(self._stored_weight)

    def weight_and_bias(self) -> tuple[Tensor, Tensor | None]:
        """What the forward pass computes with."""
        if self.choice is None:
            return self.weight, self.bias
        if not self.tuning:
            assert self._stored_weight is not None
            return self._stored_weight, self._stored_bias
        weight = fake_quantize(self.weight, self.base_scale * self.scale_factor, weight_levels(self.choice))
        return (weight if self.mask is None else weight * self.mask), self.bias

    def quantized_input(self, x: Tensor) -> Tensor:
        """The layer's input as the range of this call rounds it; the calls of a forward pass come in a fixed order."""
        if self.choice is None or not self.activations:
            return x
        call, self._call = self._call, (self._call + 1) % len(self.activations)
        return self.activations[call](x)

    def snapshot(self) -> dict[str, Any]:
        """Everything that a choice or fine-tuning changes, copied."""
        return {
            "choice": self.choice,
            "activations": self.activations,
            "weight": self.weight.detach().clone(),
            "bias": None if self.bias is None else self.bias.detach().clone(),
            "scale_factor": self.scale_factor.detach().clone(),
            "base_scale": self.base_scale.clone(),
            "mask": self.mask,
        }

    @torch.no_grad()
    def restore(self, snapshot: dict[str, Any]) -> None:
        """The inverse of ``snapshot``."""
        self.choice, self.activations, self.mask = snapshot["choice"], snapshot["activations"], snapshot["mask"]
        self._call = 0
        for name in ("weight", "bias", "scale_factor", "base_scale"):
            if snapshot[name] is not None:
                getattr(self, name).copy_(snapshot[name])
        self.codes = self._stored_weight = self._stored_bias = None
        self.store()


class CompressedConv2d(CompressedLayer, nn.Conv2d):
    """A convolution that can carry a choice."""

    def forward(self, x: Tensor) -> Tensor:
        """:param x: (N, C_in, H, W)"""
        return self._conv_forward(self.quantized_input(x), *self.weight_and_bias())


class CompressedLinear(CompressedLayer, nn.Linear):  # type: ignore[misc]  # torch: its bias is never None
    """A linear layer that can carry a choice."""

    def forward(self, x: Tensor) -> Tensor:
        """:param x: (..., in_features)"""
        return nn.functional.linear(self.quantized_input(x), *self.weight_and_bias())


COMPRESSIBLE: dict[type[nn.Module], type[CompressedLayer]] = {
    nn.Conv2d: CompressedConv2d,
    nn.Linear: CompressedLinear,
}


def make_compressible(model: nn.Module) -> nn.Module:
    """Turn every Conv2d and Linear of ``model`` into its compressible form, in place; other modules stay."""
    for module in model.modules():
        kind = COMPRESSIBLE.get(type(module))
        if kind is not None:
            module.__class__ = kind
            module.init_compression()  # type: ignore[operator]
    return model


@contextmanager
def tuning(layers: list[CompressedLayer]) -> Iterator[None]:
    """Compute with fake-quantized latent weights inside, with rounded, stored ones again after."""
    for layer in layers:
        layer.tuning = True
    try:
        yield
    finally:
        for layer in layers:
            layer.tuning = False
            layer.store()
