"""Layers that carry choices: what they compute with, inside and outside of fine-tuning."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hsq_env.choices import Choice, choice_grid
from hsq_env.layers import (
    CompressedConv2d,
    CompressedLayer,
    CompressedLinear,
    make_compressible,
    pack_mask,
    tuning,
    unpack_mask,
)
from hsq_env.pruning import channel_mask, magnitude_mask
from hsq_env.quantizers import activation_range, best_scale, weight_levels

RANGES = (activation_range(-2.0, 2.0, 8),)


def conv(seed: int = 0) -> CompressedConv2d:
    torch.manual_seed(seed)
    layer = make_compressible(nn.Sequential(nn.Conv2d(8, 6, 3, padding=1)))[0]  # type: ignore[index]
    assert isinstance(layer, CompressedConv2d)
    return layer.requires_grad_(False)


def images(seed: int = 1) -> Tensor:
    return torch.randn(2, 8, 5, 5, generator=torch.Generator().manual_seed(seed))


def expected_weight(weight: Tensor, choice: Choice, pattern: str = "unstructured") -> Tensor:
    """In NumPy, from the mask and the scale that the choice begins with."""
    by_channel = pattern == "channels"
    mask = (
        channel_mask(weight, choice.sparsity, None) if by_channel else magnitude_mask(weight, choice.sparsity, pattern)
    )
    levels = weight_levels(choice)
    scale = best_scale(weight, mask, levels, choice.bits).numpy().reshape(-1, *[1] * (weight.dim() - 1))
    codes = np.clip(np.rint(weight.numpy() / scale - np.float32(levels.offset)), levels.low, levels.high)
    values = (codes + np.float32(levels.offset)) * scale
    return torch.from_numpy(values if mask is None else np.where(mask.numpy(), values, np.float32(0)))


def test_only_plain_layers_change_class() -> None:
    class Special(nn.Conv2d):
        """Not ours to touch."""

    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Linear(1, 1), Special(1, 1, 1), nn.GroupNorm(1, 1))
    kinds = [type(m) for m in make_compressible(model)]  # type: ignore[attr-defined]
    assert kinds == [CompressedConv2d, CompressedLinear, Special, nn.GroupNorm]


def test_without_a_choice_the_layer_is_the_teachers() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(8, 4, 3), nn.Flatten(2), nn.Linear(9, 5))
    changed = make_compressible(copy.deepcopy(plain))
    assert torch.equal(changed(images()), plain(images()))


@pytest.mark.parametrize("choice", choice_grid(), ids=str)
@pytest.mark.parametrize("pattern", ["unstructured", "n:m", "channels"])
def test_a_choice_computes_with_the_stored_weights(choice: Choice, pattern: str) -> None:
    layer = conv()
    latent = layer.weight.clone()
    layer.compress(choice, RANGES, pattern)
    weight, bias = layer.weight_and_bias()
    assert torch.equal(weight, expected_weight(latent, choice, pattern))
    assert bias is not None and layer.bias is not None
    assert torch.equal(bias, torch.from_numpy(layer.bias.numpy().astype(np.float16).astype(np.float32)))
    assert torch.equal(layer(images()), F.conv2d(RANGES[0](images()), weight, bias, padding=1))
    assert torch.equal(layer.weight, latent)


def test_linear_layers_compute_alike() -> None:
    torch.manual_seed(2)
    layer = make_compressible(nn.Sequential(nn.Linear(12, 7)))[0].requires_grad_(False)  # type: ignore[index]
    latent, x = layer.weight.clone(), torch.randn(3, 5, 12)
    layer.compress(Choice(4, 0.5), (), "unstructured")
    expected = F.linear(x, expected_weight(latent, Choice(4, 0.5)), layer.bias.half().float())
    assert torch.equal(layer(x), expected)


@pytest.mark.parametrize("choice", choice_grid(), ids=str)
def test_fine_tuning_computes_with_the_same_weights_and_the_latent_bias(choice: Choice) -> None:
    layer = conv()
    layer.compress(choice, (), "unstructured")
    stored = layer.weight_and_bias()[0]
    with tuning([layer]):
        weight, bias = layer.weight_and_bias()
        assert torch.equal(weight, stored) and bias is layer.bias


def test_tuning_stores_what_was_learned_even_after_an_error() -> None:
    layer = conv()
    layer.compress(Choice(8), (), "unstructured")
    before = layer.weight_and_bias()[0].clone()
    with pytest.raises(RuntimeError), tuning([layer]):
        layer.scale_factor.mul_(2.0)
        raise RuntimeError
    assert not layer.tuning
    after = layer.weight_and_bias()[0]
    assert not torch.equal(after, before)
    assert torch.equal(after, layer.codes.float() * (2 * layer.base_scale).reshape(-1, 1, 1, 1))  # type: ignore[union-attr]


def test_gradients_reach_latent_weights_scales_and_biases_but_not_pruned_weights() -> None:
    layer = conv().requires_grad_(True)
    layer.compress(Choice(4, 0.5), (), "unstructured")
    with tuning([layer]):
        layer(images()).square().sum().backward()
    assert layer.mask is not None and layer.weight.grad is not None
    assert (layer.weight.grad[~layer.mask] == 0).all() and (layer.weight.grad[layer.mask] != 0).any()
    assert layer.scale_factor.grad is not None and (layer.scale_factor.grad != 0).all()
    assert layer.bias is not None and layer.bias.grad is not None and (layer.bias.grad != 0).all()


def test_every_call_of_a_pass_has_its_own_range() -> None:
    layer = conv()
    ranges = tuple(activation_range(-high, high, 4) for high in (0.1, 1.0, 10.0))
    layer.compress(Choice(8), ranges, "unstructured")
    for _ in range(2):  # two forward passes
        for found in ranges:
            assert torch.equal(layer.quantized_input(images()), found(images()))


def test_restore_inverts_everything() -> None:
    layer = conv()
    layer.compress(Choice(4, 0.25), RANGES, "unstructured")
    layer.scale_factor.mul_(1.5)
    layer.store()
    before, snapshot = layer(images()), layer.snapshot()
    layer.weight.add_(1.0)
    layer.bias.add_(1.0)  # type: ignore[union-attr]
    layer.compress(Choice(2, 0.75), (), "unstructured")
    assert not torch.equal(layer(images()), before)
    layer.restore(snapshot)
    assert layer.choice == Choice(4, 0.25) and layer.activations == RANGES
    assert torch.equal(layer(images()), before)


def test_restore_to_no_choice() -> None:
    layer = conv()
    before, snapshot = layer(images()), layer.snapshot()
    layer.compress(Choice(2), RANGES, "unstructured")
    layer.restore(snapshot)
    assert layer.choice is None and torch.equal(layer(images()), before)


def test_stored_parts_give_the_same_layer() -> None:
    first, second = conv(0), conv(1)
    choice = Choice(4, 0.5)
    first.compress(choice, RANGES, "unstructured")
    first.scale_factor.mul_(torch.linspace(0.8, 1.2, 6))
    first.store()
    assert first.codes is not None and second.bias is not None and first.bias is not None
    second.bias.copy_(first.bias.half().float())
    second.load_stored(choice, RANGES, first.codes, first.mask, first.scale())
    assert torch.equal(second(images()), first(images()))
    again: CompressedLayer = second
    again.store()  # rounding what was loaded changes nothing
    assert torch.equal(second(images()), first(images()))


@pytest.mark.parametrize("shape", [(4, 2, 3, 3), (5, 3), (1, 1, 1, 1), (16, 16, 3, 3)])
def test_a_packed_mask_takes_an_eighth_and_comes_back(shape: tuple[int, ...]) -> None:
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(0)) > 0.4
    packed = pack_mask(mask)
    assert packed is not None and packed.dtype == torch.uint8 and packed.numel() == -(-mask.numel() // 8)
    again = unpack_mask(packed, torch.zeros(shape))
    assert again is not None and torch.equal(again, mask)
    assert pack_mask(None) is None and unpack_mask(None, torch.zeros(shape)) is None


@pytest.mark.parametrize("choice", choice_grid(), ids=str)
@pytest.mark.parametrize("pattern", ["unstructured", "n:m", "channels"])
def test_a_packed_layer_computes_the_same(choice: Choice, pattern: str) -> None:
    layer, other = conv(0), conv(1)
    layer.compress(choice, RANGES, pattern)
    assert layer.bias is not None and other.bias is not None
    layer.weight += 0.01 * torch.randn_like(layer.weight)  # as fine-tuning leaves it
    layer.scale_factor.mul_(1.03)
    layer.bias += 0.1
    layer.store()
    packed = layer.pack()
    assert packed.nbytes <= 1.2 * layer.weight.numel() + 100
    other.unpack(packed)
    assert torch.equal(layer(images()), other(images()))
    assert layer.codes is not None and other.codes is not None and other.choice == choice
    assert torch.equal(other.codes, layer.codes) and torch.equal(other.scale(), layer.scale())
    assert torch.equal(other.bias, layer.bias)


def test_a_forgotten_choice_leaves_the_weights() -> None:
    layer, plain = conv(), conv()
    layer.compress(Choice(2, 0.5), RANGES, "unstructured")
    assert not torch.equal(layer(images()), plain(images()))
    layer.forget()
    assert torch.equal(layer(images()), plain(images())) and layer.choice is layer.mask is layer.codes is None
