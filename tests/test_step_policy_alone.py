"""The policy of the environment's steps without an environment: its lessons, its versions, its state."""

import copy
import hashlib
from typing import Any

import pytest
import torch
from tiny_task import Distilled, TinyBatch, TinyTask
from torch import Tensor

from hsq_env.distillation import AKD
from hsq_env.distillation.difficulty import difficulty
from hsq_env.distillation.spark import Lesson, Spark
from hsq_env.step_policy import LAYERS_PER_LESSON, PolicyState, StepPolicy


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def lesson_of(policy: StepPolicy, seed: int) -> Lesson:
    drawn = policy.spark.draw(noise(2, 4, 8, 8, seed=seed))
    return Lesson(drawn, noise(2, 8, 8, seed=seed + 1), noise(2, 8, 8, seed=seed + 2))


def learned(policy: StepPolicy, *seeds: int) -> StepPolicy:
    policy.lessons += [lesson_of(policy, seed) for seed in seeds]
    policy.end_episode()
    return policy


def weights_of(policy: StepPolicy) -> dict[str, Tensor]:
    return copy.deepcopy(policy.spark.policy.state_dict())


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_every_sixth_layer_has_a_lesson_and_others_in_every_episode() -> None:
    policy = StepPolicy(AKD(), episodes=2)
    assert LAYERS_PER_LESSON == 6
    assert [layer for layer in range(20) if policy.wants_lesson(layer)] == [0, 6, 12, 18]
    learned(policy, 1)
    assert policy.version == 1 and [layer for layer in range(20) if policy.wants_lesson(layer)] == [5, 11, 17]
    learned(policy, 2)
    assert policy.version == 2 and not any(policy.wants_lesson(layer) for layer in range(20))


@pytest.mark.parametrize("episodes", [0, 1, 3])
def test_it_learns_in_so_many_episodes(episodes: int) -> None:
    policy = StepPolicy(AKD(), episodes)
    for version in range(episodes):
        assert policy.learning and policy.spark.learning and policy.version == version
        learned(policy, version)
    assert not policy.learning and not policy.spark.learning and policy.version == episodes


def test_an_episode_without_lessons_changes_nothing() -> None:
    policy = StepPolicy(AKD(), episodes=2)
    before = weights_of(policy)
    assert policy.end_episode() is False
    assert policy.version == 0 and policy.learning and same(weights_of(policy), before)


def test_the_lessons_of_an_episode_are_learned_in_their_order_and_then_gone() -> None:
    policy, plain = StepPolicy(AKD(), episodes=2, seed=3), Spark(AKD(), seed=3)
    policy.lessons = [lesson_of(policy, seed) for seed in (1, 5)]
    for taught in policy.lessons:
        plain.learn(taught)
    assert policy.end_episode() is True
    assert policy.lessons == [] and policy.version == 1
    assert same(weights_of(policy), dict(plain.policy.state_dict()))
    assert not same(weights_of(policy), weights_of(StepPolicy(AKD(), episodes=2, seed=3)))


def test_the_seed_decides_about_the_first_weights_and_the_draws() -> None:
    policies = {seed: StepPolicy(AKD(), 1, seed) for seed in (0, 1)}
    digests = {seed: policy.digest() for seed, policy in policies.items()}
    assert digests[0] == StepPolicy(AKD(), 1).digest() != digests[1]
    drawn = [policies[seed].spark.draw(noise(1, 4, 8, 8)).actions for seed in (0, 1)]
    assert torch.equal(drawn[0], StepPolicy(AKD(), 1).spark.draw(noise(1, 4, 8, 8)).actions)
    assert not torch.equal(*drawn)


def test_the_criterion_is_the_one_given() -> None:
    criterion = AKD(temperature=3.0)
    assert StepPolicy(criterion, 1).spark.criterion is criterion


def test_the_digest_is_that_of_the_weights() -> None:
    policy = StepPolicy(AKD(), 2)
    plain = b"".join(tensor.numpy().tobytes() for tensor in policy.spark.policy.state_dict().values())
    assert policy.digest() == hashlib.sha256(plain).digest()
    before = policy.digest()
    learned(policy, 1)
    assert policy.digest() != before


def test_weights_are_the_means_of_what_it_sees(tiny: TinyTask) -> None:
    policy = learned(StepPolicy(AKD(), 9), 1, 5, 9)
    batch: TinyBatch = tiny.evaluation("search")[0]
    student, teacher = ([Distilled("f", "features", noise(32, 5, 4, 4, seed=seed))] for seed in (1, 2))
    with torch.no_grad():
        found = policy.weights(tiny, {}, batch, student, teacher)
        gaps = AKD().gaps(student, teacher)
        expected = policy.spark.policy.draw(difficulty(batch.images, [torch.zeros(32, 1, 1)], gaps, 8)).weights
    assert torch.equal(found, expected) and found.shape == (32, 8, 8) and found.std() > 0


def test_errors_are_seen_where_a_task_tells_them(tiny: TinyTask) -> None:
    class Telling(TinyTask):
        def error_maps(self, outputs: dict[str, Any], batch: Any) -> list[Tensor]:
            return [outputs["errors"] * len(batch.images)]

    telling = object.__new__(Telling)
    policy = learned(StepPolicy(AKD(), 9), 1, 5, 9)
    batch: TinyBatch = tiny.evaluation("search")[0]
    teacher, errors = [Distilled("f", "features", noise(32, 5, 4, 4))], noise(32, 8, 8, seed=3)
    with torch.no_grad():
        found = policy.weights(telling, {"errors": errors}, batch, teacher, teacher)
        gaps = AKD().gaps(teacher, teacher)
        expected = policy.spark.policy.draw(difficulty(batch.images, [32 * errors], gaps, 8)).weights
    assert torch.equal(found, expected)


def test_a_state_has_everything_and_is_a_copy() -> None:
    policy = learned(StepPolicy(AKD(), 4, seed=2), 1, 5)
    policy.lessons = [lesson_of(policy, 9)]
    state = policy.state()
    assert state.version == 1 and isinstance(state.lessons, tuple) and len(state.lessons) == 1
    kept = copy.deepcopy(state)
    policy.lessons.append(lesson_of(policy, 13))
    policy.end_episode()
    then = weights_of(policy)
    assert len(state.lessons) == 1 and same(state.spark["reinforce"]["policy"], kept.spark["reinforce"]["policy"])
    other = StepPolicy(AKD(), 4)
    assert other.load(state) is True
    assert other.version == 1 and other.lessons == list(state.lessons)
    other.lessons.append(lesson_of(other, 13))
    other.end_episode()
    assert same(weights_of(other), then)  # the same lessons, the same draws
    assert same(state.spark["reinforce"]["policy"], kept.spark["reinforce"]["policy"]) and len(state.lessons) == 1


def test_loading_says_whether_the_weights_are_others() -> None:
    policy = StepPolicy(AKD(), 4)
    first = policy.state()
    assert policy.load(first) is False
    policy.spark.draw(noise(1, 4, 8, 8))  # the random numbers alone
    assert policy.load(policy.state()) is False
    second = learned(StepPolicy(AKD(), 4), 1).state()
    assert policy.load(second) is True and policy.load(second) is False
    assert policy.load(first) is True and policy.version == 0
    assert policy.load(PolicyState(3, first.spark, ())) is True  # another version counts too
    other = learned(StepPolicy(AKD(), 4), 7).state()
    policy.load(second)
    assert policy.load(other) is True  # of the same version


def test_loading_takes_up_learning_or_lets_it_be() -> None:
    policy = StepPolicy(AKD(), 1)
    first, done = policy.state(), learned(StepPolicy(AKD(), 1), 1).state()
    policy.load(done)
    assert not policy.learning and not policy.spark.learning
    policy.load(first)
    assert policy.learning and policy.spark.learning
