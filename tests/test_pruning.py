"""Pruning: exact counts, the largest survive."""

import numpy as np
import pytest
import torch

from hsq_env.pruning import channel_mask, dropped_channels, follows_pattern, magnitude_mask

SHAPES = [(16, 16, 3, 3), (5, 7), (3, 1, 3, 3), (1, 1, 1, 1), (16, 1, 3, 3)]


def draw(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


def test_nothing_is_pruned_at_zero() -> None:
    assert magnitude_mask(draw((4, 4)), 0.0) is None
    assert magnitude_mask(draw((4, 4)), 0.0, "n:m") is None


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("sparsity", [0.25, 0.5, 0.75])
def test_exactly_the_smallest_are_removed(shape: tuple[int, ...], sparsity: float) -> None:
    weight = draw(shape)
    mask = magnitude_mask(weight, sparsity)
    assert mask is not None and mask.shape == weight.shape
    removed = round(sparsity * weight.numel())
    expected = np.ones(weight.numel(), dtype=bool)
    expected[np.abs(weight.numpy().ravel()).argsort(kind="stable")[:removed]] = False
    assert int((~mask).sum()) == removed
    assert np.array_equal(mask.numpy().ravel(), expected)


def test_equal_magnitudes_are_removed_from_the_front() -> None:
    mask = magnitude_mask(torch.tensor([[1.0, -1.0, 1.0, -1.0]]), 0.5)
    assert mask is not None and mask.tolist() == [[False, False, True, True]]
    many = magnitude_mask(torch.ones(5, 400), 0.25)
    assert many is not None and many.flatten().tolist() == [False] * 500 + [True] * 1500


@pytest.mark.parametrize("sparsity", [0.25, 0.5, 0.75])
def test_pattern_keeps_the_largest_of_each_four(sparsity: float) -> None:
    weight = draw((6, 4, 3, 3), seed=1)
    mask = magnitude_mask(weight, sparsity, "n:m")
    assert mask is not None
    kept = 4 - round(4 * sparsity)
    for values, survives in zip(weight.abs().numpy().reshape(-1, 4), mask.numpy().reshape(-1, 4), strict=True):
        assert survives.sum() == kept
        assert set(np.flatnonzero(survives)) == set(np.argsort(values)[4 - kept :])


def test_pattern_needs_a_fan_in_that_is_a_multiple_of_four() -> None:
    assert follows_pattern((8, 4, 3, 3), "n:m") and follows_pattern((3, 16), "n:m")
    assert not follows_pattern((8, 6), "n:m") and not follows_pattern((8, 2, 3, 3), "n:m")
    assert not follows_pattern((8, 3, 3, 3), "n:m") and not follows_pattern((8, 4, 3, 3), "unstructured")


def test_other_layers_stay_unstructured() -> None:
    weight = draw((8, 3, 3, 3), seed=2)  # a fan-in of 27
    mask, plain = magnitude_mask(weight, 0.5, "n:m"), magnitude_mask(weight, 0.5)
    assert mask is not None and plain is not None and torch.equal(mask, plain)
    assert len(set(mask.flatten(1).sum(dim=1).tolist())) > 1  # channels differ: no pattern within them


@pytest.mark.parametrize("shape", [(3, 8), (2, 8, 3, 3)], ids=str)
@pytest.mark.parametrize("sparsity", [0.25, 0.5, 0.75])
def test_channels_go_in_the_order_given(shape: tuple[int, ...], sparsity: float) -> None:
    order = (5, 0, 7, 1, 6, 2, 3, 4)
    mask = channel_mask(draw(shape), sparsity, order)
    assert mask is not None and mask.shape == shape and mask.dtype == torch.bool
    dropped = set(order[: int(8 * sparsity)])
    assert all(bool((mask[:, c] == (c not in dropped)).all()) for c in range(8))


@pytest.mark.parametrize("shape", [(3, 8), (2, 8, 3, 3)], ids=str)
def test_without_an_order_the_channels_with_the_smallest_weights_go(shape: tuple[int, ...]) -> None:
    weight = draw(shape, seed=3)
    mask = channel_mask(weight, 0.5, None)
    energy = np.square(weight.numpy()).reshape(shape[0], 8, -1).sum(axis=(0, 2))
    assert mask is not None
    assert set(np.flatnonzero(~mask[0].reshape(8, -1)[:, 0].numpy())) == set(energy.argsort()[:4])
    alike = channel_mask(torch.ones(shape), 0.5, None)
    assert alike is not None and alike[0].reshape(8, -1)[:, 0].tolist() == [False] * 4 + [True] * 4


def test_a_share_of_channels_is_rounded_down() -> None:
    assert [dropped_channels((4, n, 3, 3), 0.75) for n in (1, 2, 3, 4, 5)] == [0, 1, 2, 3, 3]
    assert channel_mask(draw((4, 1, 3, 3)), 0.75, (0,)) is None and channel_mask(draw((4, 3)), 0.25, None) is None
    one = channel_mask(torch.tensor([[3.0, 1.0]]), 0.5, None)
    assert one is not None and one.tolist() == [[True, False]]
