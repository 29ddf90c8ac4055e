"""Quantizers against plain NumPy, at zero tolerance, and their gradients against hand formulas."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from hsq_env.choices import Choice, choice_grid
from hsq_env.quantizers import (
    SCALE_CANDIDATES,
    SMALLEST_CLIP,
    Levels,
    activation_range,
    best_scale,
    dequantize,
    fake_quantize,
    fitted_range,
    quantize,
    storable,
    weight_levels,
)

Array = NDArray[np.float32]


def bfloat16(values: Array) -> Array:
    """Rounded to the nearest bfloat16, ties to even, on the bits of the float32."""
    u = values.astype(np.float32).view(np.uint32)
    return ((u + 0x7FFF + ((u >> 16) & 1)) & np.uint32(0xFFFF0000)).view(np.float32)


def numpy_codes(weight: Array, scale: Array, levels: Levels) -> NDArray[np.int64]:
    steps = (weight / scale[:, None]).astype(np.float32) - np.float32(levels.offset)
    return np.clip(np.rint(steps), levels.low, levels.high).astype(np.int64)


def numpy_values(codes: NDArray[np.int64], scale: Array, levels: Levels) -> Array:
    return (codes.astype(np.float32) + np.float32(levels.offset)) * scale[:, None]


def draw(seed: int, shape: tuple[int, ...] = (6, 40)) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# ---- levels


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.75])
def test_two_bits_are_balanced(sparsity: float) -> None:
    levels = weight_levels(Choice(2, sparsity))
    codes = torch.arange(levels.low, levels.high + 1, dtype=torch.int8)[None]
    assert dequantize(codes, torch.tensor([2.0]), levels).tolist() == [[-3.0, -1.0, 1.0, 3.0]]
    assert levels.reach == 1.5


def test_two_bits_hold_zero_where_a_mask_would_cost_more() -> None:
    levels = weight_levels(Choice(2, 0.25))
    codes = torch.arange(levels.low, levels.high + 1, dtype=torch.int8)[None]
    assert dequantize(codes, torch.tensor([2.0]), levels).tolist() == [[-4.0, -2.0, 0.0, 2.0]]
    assert levels.reach == 1.0


@pytest.mark.parametrize(("bits", "low", "high"), [(4, -8, 7), (8, -128, 127)])
def test_more_bits_are_symmetric_integers(bits: int, low: int, high: int) -> None:
    for sparsity in (0.0, 0.25, 0.5, 0.75):
        assert weight_levels(Choice(bits, sparsity)) == Levels(low, high, 0.0)


# ---- values


@pytest.mark.parametrize("choice", choice_grid(), ids=str)
def test_codes_and_values_equal_numpy(choice: Choice) -> None:
    levels = weight_levels(choice)
    weight = draw(1)
    scale = bfloat16(np.abs(draw(2, (6,))) / levels.reach + np.float32(0.01))
    codes = quantize(torch.from_numpy(weight), torch.from_numpy(scale), levels)
    expected = numpy_codes(weight, scale, levels)
    assert codes.dtype == torch.int8
    assert np.array_equal(codes.numpy(), expected)
    assert {int(expected.min()), int(expected.max())} <= set(range(levels.low, levels.high + 1))
    values = dequantize(codes, torch.from_numpy(scale), levels)
    assert np.array_equal(values.numpy(), numpy_values(expected, scale, levels))


def test_values_of_convolutions_use_the_first_dimension() -> None:
    levels = weight_levels(Choice(4))
    weight, scale = draw(3, (5, 2, 3, 3)), bfloat16(np.abs(draw(4, (5,))) + np.float32(0.1))
    codes = quantize(torch.from_numpy(weight), torch.from_numpy(scale), levels)
    assert np.array_equal(codes.numpy().reshape(5, -1), numpy_codes(weight.reshape(5, -1), scale, levels))


@pytest.mark.parametrize("choice", choice_grid(), ids=str)
def test_fake_quantize_gives_what_is_stored(choice: Choice) -> None:
    levels = weight_levels(choice)
    weight = torch.from_numpy(draw(5, (8, 3, 3, 3)))
    scale = torch.from_numpy(np.abs(draw(6, (8,))) / np.float32(levels.reach) + np.float32(0.01))
    stored = storable(scale)
    assert torch.equal(
        fake_quantize(weight, scale, levels), dequantize(quantize(weight, stored, levels), stored, levels)
    )


# ---- scales


def test_storable_rounds_to_bfloat16() -> None:
    scale = np.abs(draw(7, (1000,))) * np.float32(0.01) + np.float32(1e-6)
    assert np.array_equal(storable(torch.from_numpy(scale)).numpy(), bfloat16(scale))


def test_storable_stays_positive() -> None:
    assert (storable(torch.tensor([0.0, -0.005, -1.0])) > 0).all()


def test_storable_passes_gradients_straight_through() -> None:
    scale = torch.tensor([0.3, -0.2, 1e-20], requires_grad=True)
    (storable(scale) * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert scale.grad is not None and scale.grad.tolist() == [1.0, 2.0, 3.0]


def squared_error(weight: Array, kept: NDArray[np.bool_], scale: Array, levels: Levels) -> NDArray[np.float64]:
    """Per channel, over survivors, in float64."""
    values = numpy_values(numpy_codes(weight, scale, levels), scale, levels).astype(np.float64)
    return np.asarray((((values - weight) * kept) ** 2).sum(axis=1))


@pytest.mark.parametrize("choice", choice_grid(), ids=str)
def test_best_scale_is_the_best_candidate(choice: Choice) -> None:
    levels = weight_levels(choice)
    weight = draw(8, (16, 72)) * np.logspace(-2, 1, 16, dtype=np.float32)[:, None]
    kept = np.random.default_rng(9).random(weight.shape) >= choice.sparsity
    mask = torch.from_numpy(kept) if choice.sparsity else None
    found = best_scale(torch.from_numpy(weight), mask, levels, choice.bits).numpy()
    largest = np.abs(weight * kept).max(axis=1) / np.float32(levels.reach)
    steps = np.linspace(SMALLEST_CLIP[choice.bits], 1.0, SCALE_CANDIDATES[choice.bits], dtype=np.float32)
    candidates = np.stack([bfloat16(largest * factor) for factor in steps])
    errors = np.stack([squared_error(weight, kept, scale, levels) for scale in candidates])
    for channel in range(len(weight)):
        best = errors[:, channel].min()
        near = candidates[errors[:, channel] <= best * (1 + 1e-5), channel]  # equal but for rounding of the sum
        assert found[channel] in near
    by_maximum = squared_error(weight, kept, bfloat16(largest), levels)
    assert (squared_error(weight, kept, found, levels) <= by_maximum * (1 + 1e-6)).all()


def test_best_scale_beats_the_maximum_where_there_is_an_outlier() -> None:
    weight = draw(10, (1, 400))
    weight[0, 0] = 6.0
    levels = weight_levels(Choice(4))
    kept = np.ones(weight.shape, dtype=bool)
    found = best_scale(torch.from_numpy(weight), None, levels, 4).numpy()
    by_maximum = bfloat16(np.array([6.0], np.float32) / 7)
    assert squared_error(weight, kept, found, levels) < 0.9 * squared_error(weight, kept, by_maximum, levels)


def test_best_scale_of_an_empty_channel_is_positive() -> None:
    for choice in choice_grid():
        scale = best_scale(torch.zeros(2, 8), None, weight_levels(choice), choice.bits)
        assert (scale > 0).all() and scale.isfinite().all()


# ---- gradients


@pytest.mark.parametrize("choice", [Choice(2), Choice(2, 0.25), Choice(4), Choice(8)], ids=str)
def test_gradients_are_straight_through_and_lsq(choice: Choice) -> None:
    levels = weight_levels(choice)
    half = 2.0 ** (choice.bits - 1)
    weight = draw(11, (4, 50)) * np.float32(0.7 * half)  # a scale of 1 clips some on both sides
    scale = np.array([1.0, 0.5, 2.0, 0.75], np.float32)
    upstream = draw(12, weight.shape)
    w, s = torch.tensor(weight, requires_grad=True), torch.tensor(scale, requires_grad=True)
    (fake_quantize(w, s, levels) * torch.from_numpy(upstream)).sum().backward()
    assert w.grad is not None and s.grad is not None

    steps = weight.astype(np.float64) / scale[:, None]  # in scales
    free = np.rint(steps - levels.offset)
    inside = (free >= levels.low) & (free <= levels.high)
    assert inside.any() and not inside.all()
    assert np.array_equal(w.grad.numpy(), np.where(inside, upstream, 0))
    # LSQ, equation 3: round(v) - v inside, the outermost level outside; section 2.2: times 1 / sqrt(N * Q)
    value = np.clip(free, levels.low, levels.high) + levels.offset
    slope = np.where(inside, value - steps, value)
    expected = (slope * upstream).sum(axis=1) / np.sqrt(weight.shape[1] * levels.high)
    np.testing.assert_allclose(s.grad.numpy(), expected, rtol=1e-4, atol=1e-5)


# ---- activations


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 3.7), (-1.3, 2.9), (-5.0, -1.0), (0.4, 0.9), (-1e-3, 80.0), (0.0, 0.0)]
)
def test_activation_range_covers_and_holds_zero(low: float, high: float, bits: int) -> None:
    found = activation_range(low, high, bits)
    assert 0 <= found.zero_point <= 2**bits - 1
    assert found(torch.zeros(3)).tolist() == [0.0] * 3
    x = torch.linspace(min(low, 0), max(high, 0), 1001)
    assert (found(x) - x).abs().max() <= found.scale * 0.5001
    assert found.scale == pytest.approx(max((max(high, 0) - min(low, 0)) / (2**bits - 1), 1e-12), rel=1e-6)


def test_activation_codes_equal_numpy() -> None:
    found = activation_range(-0.5, 255 / 128 - 0.5, 8)  # a scale of 1/128 divides exactly
    assert (found.scale, found.zero_point) == (1 / 128, 64)
    x = draw(13, (500,))
    expected = (np.clip(np.rint(x * 128) + 64, 0, 255) - 64) / 128
    assert np.array_equal(found(torch.from_numpy(x)).numpy(), expected.astype(np.float32))


def test_activation_gradient_is_straight_through_inside_the_range() -> None:
    x = torch.tensor([-3.0, -0.4, 0.0, 0.7, 9.0], requires_grad=True)
    activation_range(-1.0, 1.0, 8)(x).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [0.0, 1.0, 1.0, 1.0, 0.0]


def test_a_fitted_range_has_less_error_than_the_span_and_never_more() -> None:
    generator = torch.Generator().manual_seed(0)
    spiky = torch.cat([torch.rand(2000, generator=generator), torch.tensor([9.0])])
    for bits in (2, 4, 8):
        span, fitted = activation_range(0.0, 9.0, bits), fitted_range(spiky, bits)
        errors = [float((r(spiky) - spiky).square().mean()) for r in (span, fitted)]
        assert errors[1] <= errors[0]
    assert fitted_range(spiky, 4).scale < 0.6 * activation_range(0.0, 9.0, 4).scale
    even = torch.linspace(0, 1, 1000)
    assert fitted_range(even, 4).scale == pytest.approx(activation_range(0.0, 1.0, 4).scale, rel=0.05)


def test_a_learned_range_rounds_as_the_scaled_one_and_its_factor_gets_a_gradient() -> None:
    given = activation_range(-1.0, 3.0, 4)
    x = torch.linspace(-2, 5, 101)
    factor = torch.tensor(0.75, requires_grad=True)
    rounded = given.learned(x, factor)
    torch.testing.assert_close(rounded, given.scaled(0.75)(x))
    rounded.square().mean().backward()
    # values beyond the range are cut: a wider one puts out larger values, so that their squares grow with the factor
    assert factor.grad is not None and float(factor.grad) > 0
    assert given.scaled(0.75).zero_point == given.zero_point and given.scaled(0.0).scale > 0


def test_the_gradient_of_a_learned_range_is_that_of_lsq() -> None:
    """Equation 3 for a range that is not symmetric; section 2.1: times 1 / sqrt(N * Q)."""
    given = activation_range(-1.0, 3.0, 4)
    x, upstream = draw(20, (60,)) * np.float32(3), draw(21, (60,))
    values, factor = torch.tensor(x, requires_grad=True), torch.tensor(0.75, requires_grad=True)
    (given.learned(values, factor) * torch.from_numpy(upstream)).sum().backward()
    assert values.grad is not None and factor.grad is not None
    scale = 0.75 * given.scale
    codes = np.rint(x / scale) + given.zero_point
    inside = (codes >= 0) & (codes <= 15)
    assert inside.any() and (codes < 0).any() and (codes > 15).any()
    assert np.array_equal(values.grad.numpy(), np.where(inside, upstream, 0))
    level = np.clip(codes, 0, 15) - given.zero_point
    slope = np.where(inside, level - x / scale, level)
    expected = (slope * upstream).sum() / np.sqrt(60 * 15) * given.scale
    assert factor.grad.item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("seed", range(4))
def test_a_fitted_range_is_the_best_part_of_the_span(bits: int, seed: int) -> None:
    sample = torch.from_numpy(draw(seed, (300,)) ** 3) - 0.5 * seed  # long tails on both sides
    low, high = float(sample.min()), float(sample.max())
    parts = [activation_range(low * f, high * f, bits) for f in torch.linspace(0.1, 1.0, 46).tolist()]
    errors = [float((part(sample) - sample).square().mean()) for part in parts]
    found = fitted_range(sample, bits)
    assert low < 0 < high and found == parts[int(np.argmin(errors))] and found.bits == bits


def test_a_single_channel_is_quantized() -> None:
    levels, weight, scale = weight_levels(Choice(4)), torch.from_numpy(draw(22, (1, 9))), torch.tensor([0.25])
    assert torch.equal(fake_quantize(weight, scale, levels), dequantize(quantize(weight, scale, levels), scale, levels))
