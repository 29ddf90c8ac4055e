"""SPARK's policy: its maps, and whether it learns."""

import numpy as np
import pytest
import torch
from torch import Tensor

from hsq_env.distillation.policy import (
    FIRST_SPREAD,
    LARGEST_FACTOR,
    Draw,
    Reinforce,
    SpatialPolicy,
    spread_over,
    weights_of,
)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def some_policy(seed: int = 0) -> SpatialPolicy:
    """Any weights but the zeros of the last layer."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        policy = SpatialPolicy()
        for parameter in policy.layers[-1].parameters():
            torch.nn.init.normal_(parameter)
    return policy


def test_weights_by_hand() -> None:
    actions = torch.tensor([[[0.0, 100.0], [-100.0, 0.0]]])
    mean = (2 + LARGEST_FACTOR + 1 / LARGEST_FACTOR) / 4
    expected = [[1 / mean, LARGEST_FACTOR / mean], [1 / LARGEST_FACTOR / mean, 1 / mean]]
    np.testing.assert_allclose(weights_of(actions)[0], expected, rtol=1e-6)


@pytest.mark.parametrize("size", [(8, 8), (16, 20), (45, 45), (2, 3), (1, 1), (4, 16)])
def test_spread_weights_keep_mean_1(size: tuple[int, int]) -> None:
    weights = weights_of(noise(3, 8, 8))
    found = spread_over(weights, *size)
    assert found.shape == (3, *size) and (found > 0).all()
    np.testing.assert_allclose(found.mean(dim=(1, 2)), 1, rtol=1e-5)
    if size == (8, 8):
        np.testing.assert_allclose(found, weights, rtol=1e-5)


def test_equal_weights_are_spread_as_ones() -> None:
    assert torch.allclose(spread_over(torch.ones(2, 8, 8), 13, 21), torch.ones(2, 13, 21))


def test_the_first_policy_weighs_all_places_alike() -> None:
    drawn = SpatialPolicy().draw(noise(2, 4, 8, 8))
    assert torch.equal(drawn.weights, torch.ones(2, 8, 8)) and (drawn.actions == 0).all()


def test_draws_scatter_as_the_gaussian_says_and_repeat_with_the_seed() -> None:
    policy, signals = some_policy(), noise(64, 4, 8, 8)
    one, same = (policy.draw(signals, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one.weights, same.weights)
    gaussian = policy.distribution(signals)
    standard = (one.actions - gaussian.mean) / gaussian.stddev
    assert abs(standard.mean().item()) < 0.05 and abs(standard.std().item() - 1) < 0.05
    np.testing.assert_allclose(one.weights.mean(dim=(1, 2)).detach(), 1, rtol=1e-5)
    other = policy.draw(signals, torch.Generator().manual_seed(4))
    assert not torch.equal(one.weights, other.weights)


def test_one_update_follows_the_log_probability() -> None:
    """The gradient of the first update, whose baseline is 0, against one taken by hand."""
    policy = some_policy()
    drawn = policy.draw(noise(2, 4, 8, 8), torch.Generator().manual_seed(0))
    rewards = noise(2, 8, 8, seed=1)
    gaussian = policy.distribution(drawn.signals)
    log_probability = -0.5 * ((drawn.actions - gaussian.mean) / gaussian.stddev) ** 2 - gaussian.stddev.log()
    scaled = rewards / rewards.double().square().mean().sqrt().float()
    entropy = gaussian.stddev.log().mean()
    pull = (gaussian.mean**2 + gaussian.stddev**2).mean() / (2 * FIRST_SPREAD**2)
    (-(scaled * log_probability).mean() + 0.01 * (pull - entropy)).backward()  # type: ignore[no-untyped-call]
    expected = [p.grad.clone() for p in policy.parameters() if p.grad is not None]
    learner = Reinforce(policy, divergence=0.01)
    learner.update(drawn, rewards)
    for parameter, gradient in zip(policy.parameters(), expected, strict=True):
        assert parameter.grad is not None
        np.testing.assert_allclose(parameter.grad, gradient, rtol=1e-3, atol=1e-6)


def test_the_policy_learns_where_weight_pays() -> None:
    """Places whose first signal is high are worth weight, the others are not."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        policy = SpatialPolicy()
    learner, generator = Reinforce(policy), torch.Generator().manual_seed(0)
    for step in range(150):
        signals = noise(4, 4, 8, 8, seed=step)
        drawn = policy.draw(signals, generator)
        learner.update(drawn, (drawn.weights - 1) * signals[:, 0])
    fresh = noise(16, 4, 8, 8, seed=1000)
    weights = policy.draw(fresh).weights
    assert np.corrcoef(weights.flatten(), fresh[:, 0].flatten())[0, 1] > 0.7
    assert abs(np.corrcoef(weights.flatten(), fresh[:, 1].flatten())[0, 1]) < 0.3


def test_noise_does_not_lead_anywhere() -> None:
    """Where no place pays, the weights stay near 1; without the pull to equal weights they wander."""
    spreads = {}
    for pull in (0.1, 0.0):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            learner = Reinforce(SpatialPolicy(), divergence=pull)
        generator = torch.Generator().manual_seed(0)
        for step in range(300):
            drawn = learner.policy.draw(noise(2, 4, 8, 8, seed=step), generator)
            learner.update(drawn, (drawn.weights - 1) * noise(2, 8, 8, seed=1000 + step))
        spreads[pull] = learner.policy.draw(noise(16, 4, 8, 8, seed=5000)).weights.std().item()
    assert spreads[0.1] < 0.12 and spreads[0.1] < spreads[0.0] / 3, spreads


def test_the_spread_stays_within_its_bounds_and_comes_back() -> None:
    learner, generator = Reinforce(SpatialPolicy()), torch.Generator().manual_seed(0)
    learner.policy.log_spread.data.fill_(0.5)
    found = []
    for step in range(100):
        drawn = learner.policy.draw(noise(2, 4, 8, 8, seed=step), generator)
        found.append(learner.update(drawn, noise(2, 8, 8, seed=1000 + step))["spread"])
    assert learner.policy.log_spread.exp().item() < found[1] <= 1.0


def test_rewards_that_are_no_numbers_teach_nothing() -> None:
    policy = SpatialPolicy()
    before = [p.clone() for p in policy.parameters()]
    learner = Reinforce(policy)
    drawn = policy.draw(noise(1, 4, 8, 8), torch.Generator().manual_seed(0))
    assert learner.update(drawn, torch.full((1, 8, 8), torch.nan)) == {}
    assert all(torch.equal(p, b) for p, b in zip(policy.parameters(), before, strict=True))


def test_the_scale_of_rewards_does_not_matter() -> None:
    """Gains shrink by orders of magnitude in a training."""
    ends = []
    for scale in (1.0, 1e-6):
        policy = some_policy()
        learner, generator = Reinforce(policy), torch.Generator().manual_seed(0)
        for step in range(5):
            drawn = policy.draw(noise(2, 4, 8, 8, seed=step), generator)
            learner.update(drawn, scale * noise(2, 8, 8, seed=100 + step))
        ends.append(policy.draw(noise(2, 4, 8, 8, seed=50)).weights)
    np.testing.assert_allclose(ends[0].detach(), ends[1].detach(), rtol=1e-3)


def test_learning_goes_on_from_its_state() -> None:
    first, second = Reinforce(some_policy()), Reinforce(SpatialPolicy())

    def lesson(learner: Reinforce, seed: int) -> None:
        signals = noise(2, 4, 8, 8, seed=seed)
        drawn = Draw(signals, noise(2, 8, 8, seed=seed + 1), torch.ones(2, 8, 8))
        learner.update(drawn, noise(2, 8, 8, seed=seed + 2))

    lesson(first, 0)
    second.load_state_dict(first.state_dict())
    for seed in (10, 20):
        lesson(first, seed)
        lesson(second, seed)
    for one, other in zip(first.policy.parameters(), second.policy.parameters(), strict=True):
        assert torch.equal(one, other)


def test_maps_are_positive_and_bounded() -> None:
    weights = weights_of(3 * noise(8, 8, 8))
    highest, lowest = weights.amax(dim=(1, 2)), weights.amin(dim=(1, 2))
    assert (lowest > 0).all() and (highest / lowest <= LARGEST_FACTOR**2 * (1 + 1e-5)).all()
