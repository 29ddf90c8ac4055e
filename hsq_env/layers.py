"""Convolutions and linear layers that can carry a choice."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hsq_env.choices import Choice
from hsq_env.pruning import channel_mask, magnitude_mask
from hsq_env.quantizers import (
    ActivationRange,
    best_scale,
    dequantize,
    fake_quantize,
    quantize,
    storable,
    storable_bias,
    weight_levels,
)


@dataclass(frozen=True)
class Variant:
    """What a choice makes of a layer's latent weights.

    :param mask: bool of the weight's shape, True where a weight survives; None if all do
    :param scale: per output channel, (C,)
    """

    mask: Tensor | None
    scale: Tensor


def pack_mask(mask: Tensor | None) -> Tensor | None:
    """Eight weights to a byte, (numel / 8,) uint8; waits for no device."""
    if mask is None:
        return None
    bits = mask.flatten().to(torch.uint8)
    spread = nn.functional.pad(bits, (0, -bits.numel() % 8)).reshape(-1, 8)
    return (spread << torch.arange(8, dtype=torch.uint8, device=mask.device)).sum(dim=1, dtype=torch.uint8)


def unpack_mask(packed: Tensor | None, weight: Tensor) -> Tensor | None:
    """The inverse of ``pack_mask``, for a weight of the mask's shape."""
    if packed is None:
        return None
    spread = packed[:, None] >> torch.arange(8, dtype=torch.uint8, device=packed.device) & 1
    return spread.flatten()[: weight.numel()].reshape(weight.shape).bool()


@dataclass(frozen=True)
class PackedLayer:
    """What a layer with a choice computes with: codes (int8), mask (bits), scales, bias (float32)."""

    choice: Choice
    activations: tuple[ActivationRange, ...]
    codes: Tensor
    mask: Tensor | None
    scale: Tensor
    bias: Tensor | None

    @property
    def nbytes(self) -> int:
        """Bytes that it takes in memory."""
        arrays = (self.codes, self.mask, self.scale, self.bias)
        return sum(a.nbytes for a in arrays if a is not None)


class CompressedLayer(nn.Module):
    """What ``CompressedConv2d`` and ``CompressedLinear`` share: latent weights, and what a choice makes of them.

    Without a choice the layer computes as the teacher's does. With one it computes, outside of fine-tuning, with the
    very weights that the file will hold; during fine-tuning with fake-quantized latent weights, so that gradients
    reach them, or with frozen codes. ``scale_factor`` is learned relative to the scale that the choice, or the frozen
    codes, began with.
    """

    weight: Tensor
    bias: Tensor | None
    base_scale: Tensor
    mask: Tensor | None
    codes: Tensor | None
    stored_weight: Tensor | None
    stored_bias: Tensor | None
    range_factor: nn.Parameter | None  # of every call's activation range, while ranges are learned
    mark: nn.Parameter | None

    def init_compression(self) -> None:
        """Add the state of a choice to a layer that has its weights already."""
        self.choice: Choice | None = None
        self.activations: tuple[ActivationRange, ...] = ()
        self._call = 0
        self.tuning = self.frozen = False
        self.channel_order: tuple[int, ...] | None = None  # of input channels, see ``hsq_env.channels``
        # of the teacher's weights: learning rates are relative to it, and nobody waits for a device to hear it
        self.spread = self.weight.detach().std(correction=0).item()
        ones = torch.ones(self.weight.shape[0], device=self.weight.device)
        self.scale_factor = nn.Parameter(ones, requires_grad=False)
        self.register_parameter("range_factor", None)
        self.register_parameter("mark", None)  # shows in a traced graph what is handed on; only while it is traced
        self.register_buffer("base_scale", ones.clone())
        for name in ("mask", "codes", "stored_weight", "stored_bias"):  # follow the model to its device
            self.register_buffer(name, None, persistent=False)

    def pruning_mask(self, weight: Tensor, sparsity: float, pattern: str) -> Tensor | None:
        """Which of some weights of the layer's shape survive."""
        if pattern == "channels":
            return channel_mask(weight, sparsity, self.channel_order)
        return magnitude_mask(weight, sparsity, pattern)

    @torch.no_grad()
    def variant(self, choice: Choice, pattern: str) -> Variant:
        """What a choice makes of the latent weights as they are: prune, then find scales for the survivors."""
        mask = self.pruning_mask(self.weight, choice.sparsity, pattern)
        return Variant(mask, best_scale(self.weight, mask, weight_levels(choice), choice.bits))

    @torch.no_grad()
    def compress(
        self,
        choice: Choice,
        activations: tuple[ActivationRange, ...],
        pattern: str,
        variant: Variant | None = None,
    ) -> None:
        """Prune, then quantize the survivors, starting from the latent weights as they are.

        :param activations: the input's range at each call in a forward pass; empty for float32 activations
        :param variant: of this choice and these weights, if it was made before
        """
        variant = variant or self.variant(choice, pattern)
        self.choice, self.activations, self._call = choice, activations, 0
        self.mask = variant.mask
        self.base_scale.copy_(variant.scale)
        self.scale_factor.fill_(1.0)
        self.store()

    def scale(self) -> Tensor:
        """The scales (C,) as the file holds them."""
        return storable(self.base_scale * self.scale_factor)

    @torch.no_grad()
    def store(self) -> None:
        """Round the latent weights and the bias to what the file holds; a no-op without a choice.

        Where codes are frozen, latent weights become what the codes stand for.
        """
        if self.choice is None:
            return
        levels, scale = weight_levels(self.choice), self.scale()
        if not self.frozen:
            self.codes = quantize(self.weight, scale, levels)
        assert self.codes is not None
        self._set_stored(dequantize(self.codes, scale, levels))
        if self.frozen and self.stored_weight is not None:
            self.weight.copy_(self.stored_weight)

    @torch.no_grad()
    def rebase(self) -> None:
        """Let the scales of now be those that ``scale_factor`` is relative to."""
        self.base_scale.copy_(self.scale())
        self.scale_factor.fill_(1.0)

    @torch.no_grad()
    def freeze_codes(self) -> None:
        """Until fine-tuning ends, compute with the codes that the latent weights have under ``base_scale``.

        Only scales move the weights then, with the gradient of what they really do; a no-op without a choice.
        """
        if self.choice is not None:
            self.codes = quantize(self.weight, self.base_scale, weight_levels(self.choice))
            self.frozen = True

    def _set_stored(self, weight: Tensor) -> None:
        self.stored_weight = weight if self.mask is None else weight.masked_fill(~self.mask, 0.0)
        self.stored_bias = None if self.bias is None else storable_bias(self.bias).float()

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
        assert self.stored_weight is not None
        self.weight.copy_(self.stored_weight)

    def pack(self) -> PackedLayer:
        """What the layer computes with outside of fine-tuning, in little memory; it must have a choice."""
        assert self.choice is not None and self.codes is not None
        bias = None if self.bias is None else self.bias.detach().clone()
        scale = self.scale().detach()
        return PackedLayer(self.choice, self.activations, self.codes, pack_mask(self.mask), scale, bias)

    @torch.no_grad()
    def unpack(self, packed: PackedLayer) -> None:
        """The inverse of ``pack``; the latent weights become the rounded ones."""
        if self.bias is not None and packed.bias is not None:
            self.bias.copy_(packed.bias)
        mask = unpack_mask(packed.mask, self.weight)
        self.load_stored(packed.choice, packed.activations, packed.codes, mask, packed.scale)

    def forget(self) -> None:
        """Compute as the teacher's layer again, once the weights are the teacher's."""
        self.choice, self.mask, self.activations = None, None, ()
        self.codes = self.stored_weight = self.stored_bias = None

    def weight_and_bias(self) -> tuple[Tensor, Tensor | None]:
        """What the forward pass computes with."""
        if self.choice is None:
            return self.weight, self.bias
        if not self.tuning:
            assert self.stored_weight is not None
            return self.stored_weight, self.stored_bias
        levels = weight_levels(self.choice)
        if self.frozen:
            assert self.codes is not None
            weight = dequantize(self.codes, self.scale(), levels)
        else:
            weight = fake_quantize(self.weight, self.base_scale * self.scale_factor, levels)
        return (weight if self.mask is None else weight * self.mask), self.bias

    def quantized_input(self, x: Tensor) -> Tensor:
        """The layer's input as the range of this call rounds it; the calls of a forward pass come in a fixed order."""
        if self.choice is None or not self.activations:
            return x
        call, self._call = self._call, (self._call + 1) % len(self.activations)
        if self.tuning and self.range_factor is not None:
            return self.activations[call].learned(x, self.range_factor[call])
        return self.activations[call](x)

    def handed_on(self, x: Tensor) -> Tensor:
        """The layer's rounded input, for others who read the same tensor (``detectors.stages.as_read``)."""
        return self.quantized_input(x) if self.mark is None else x + self.mark

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
        self.codes = self.stored_weight = self.stored_bias = None
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
        x = self.quantized_input(x)
        if self.choice is not None or torch.is_grad_enabled():
            x = x.contiguous()  # else torch's kernel, and the last bit, depend on whether the weight wants a gradient
        return nn.functional.linear(x, *self.weight_and_bias())


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
    """Compute with weights that gradients pass through inside, with rounded, stored ones again after."""
    for layer in layers:
        layer.tuning = True
    try:
        yield
    finally:
        for layer in layers:
            layer.store()
            layer.tuning = layer.frozen = False


@contextmanager
def learned_ranges(layers: list[CompressedLayer]) -> Iterator[None]:
    """Inside, activation ranges have factors to be learned; after, the ranges are what was learned."""
    chosen = [layer for layer in layers if layer.activations]
    for layer in chosen:
        ones = torch.ones(len(layer.activations), device=layer.weight.device)
        layer.range_factor = nn.Parameter(ones, requires_grad=False)
    try:
        yield
    finally:
        for layer in chosen:
            assert layer.range_factor is not None
            factors = layer.range_factor.tolist()
            layer.activations = tuple(r.scaled(f) for r, f in zip(layer.activations, factors, strict=True))
            layer.range_factor = None
