"""Outcomes that somebody has measured: kept in memory, in a file, and looked up by environments."""

import copy
import math
import pickle
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from tiny_task import TinyBatch, TinyTask

from hsq_env.choices import Choice
from hsq_env.compressor import Compressor
from hsq_env.env import HSQEnv
from hsq_env.identity import identity, problem
from hsq_env.outcomes import KEY_BYTES, KeptOutcomes, OutcomeFile, key_of
from hsq_env.prefixes import Decision, Outcome
from hsq_env.table_cache import table_digest

LAYERS = 7


def some(number: int) -> tuple[bytes, Outcome]:
    return number.to_bytes(KEY_BYTES, "little"), Outcome(1 / (number + 1), number % 2 == 0, math.sqrt(number))


def test_keys_tell_problems_and_decisions_apart() -> None:
    decisions = [Decision(Choice(4, 0.25), 0.3), Decision(Choice(2, 0.0), 0.3)]
    keys = {
        key_of(problem, [Decision(Choice(bits, sparsity), alpha), decisions[1]][:count])
        for problem in (b"a", b"b")
        for bits in (2, 4)
        for sparsity in (0.0, 0.25)
        for alpha in (0.3, 0.30000000000000004)
        for count in (1, 2)
    }
    assert len(keys) == 32 and all(len(key) == KEY_BYTES for key in keys)
    assert key_of(b"a", decisions) in keys and key_of(b"a", decisions[::-1]) not in keys


def test_memory_is_bounded_and_forgets_what_was_not_used() -> None:
    kept = KeptOutcomes(limit=3)
    for number in range(3):
        kept.put(*some(number))
    assert kept.get(some(0)[0]) == some(0)[1]
    kept.put(*some(3))
    assert [kept.get(some(n)[0]) is not None for n in range(4)] == [True, False, True, True] and len(kept) == 3


def test_a_file_gives_back_exactly_what_was_put(tmp_path: Path) -> None:
    path = tmp_path / "outcomes"
    values = [Outcome(0.1 + 0.2, True, 1e-300), Outcome(math.nan, False, math.nan), Outcome(-0.0, True, math.inf)]
    one, other = OutcomeFile(path), OutcomeFile(path)
    for number, outcome in enumerate(values):
        one.put(some(number)[0], outcome)
        found = other.get(some(number)[0])
        assert found is not None and repr(found) == repr(outcome)
    assert other.get(some(9)[0]) is None
    again = pickle.loads(pickle.dumps(one))
    assert len(again) == 0 and again.get(some(0)[0]) == values[0]


def test_torn_and_damaged_lines_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "outcomes"
    writer = OutcomeFile(path)
    for number in range(4):
        writer.put(*some(number))
    lines = path.read_bytes().splitlines(keepends=True)
    flipped = (b"1" if lines[1][:1] == b"0" else b"0") + lines[1][1:]
    path.write_bytes(lines[0] + flipped + b"no record\n\n" + lines[2] + lines[3][:-9])
    OutcomeFile(path).put(*some(5))  # a line of its own behind the torn one
    reader = OutcomeFile(path)
    assert [reader.get(some(n)[0]) for n in range(6)] == [some(n)[1] if n in (0, 2, 5) else None for n in range(6)]


def test_a_disk_that_takes_nothing_costs_only_the_sharing(tmp_path: Path) -> None:
    writer = OutcomeFile(tmp_path / "no folder" / "outcomes")
    writer.put(*some(1))
    assert writer.get(some(1)[0]) == some(1)[1] and writer.get(some(2)[0]) is None


def test_a_file_stops_growing(tmp_path: Path) -> None:
    path = tmp_path / "outcomes"
    writer = OutcomeFile(path, limit=5)
    for number in range(20):
        writer.put(*some(number))
    assert len(path.read_bytes().splitlines()) == 5 and len(writer) == 5


def put_many(path: Path, first: int) -> None:
    for number in range(first, first + 300):
        OutcomeFile(path).put(*some(number))


def test_processes_do_not_mix_their_lines(tmp_path: Path) -> None:
    path, context = tmp_path / "outcomes", get_context("fork")
    processes = [context.Process(target=put_many, args=(path, 300 * i)) for i in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    reader = OutcomeFile(path)
    assert all(reader.get(some(number)[0]) == some(number)[1] for number in range(900))


def env_of(tiny: TinyTask, **settings: Any) -> HSQEnv:
    return HSQEnv(tiny, target_ratio=6.0, sensitivities=np.zeros((LAYERS, 12)), **settings)


def episode(env: HSQEnv, actions: list[int]) -> list[Any]:
    env.reset(seed=0)
    steps = [env.step(action) for action in actions]
    return [(step[0].tolist(), step[1], step[2], str(step[4])) for step in steps]


@pytest.mark.parametrize(
    "settings", [{}, {"reward": "divergence", "step_minibatches": 0}, {"action_space": "discrete"}]
)
def test_a_step_that_others_measured_is_the_same_step(
    tiny: TinyTask, tmp_path: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, alone = env_of(tiny, **settings), env_of(tiny, **settings), env_of(tiny, **settings)
    for env in (first, second):
        env.share(OutcomeFile(tmp_path / "outcomes"))
    plan, turned = [4, 8, 5, 0, 8, 6, 4], [4, 8, 5, 0, 1, 6, 9]
    expected, further = episode(alone, plan), episode(alone, turned)
    assert episode(first, plan) == expected
    with monkeypatch.context() as patch:
        patch.setattr(Compressor, "measure", None)  # must not be called
        assert episode(second, plan) == expected
    assert second.steps_taken == (LAYERS, 0) and second.evaluations == LAYERS  # as if it had measured by itself
    assert episode(second, turned) == further  # from a student that is made when it is needed


def test_other_problems_share_nothing(tiny: TinyTask, tmp_path: Path) -> None:
    problems = {
        problem(env_of(task, **settings))
        for task in (tiny, TinyTask(1))
        for settings in ({}, {"step_minibatches": 1}, {"activation_bits": 4}, {"sparsity_pattern": "n:m"})
    }
    assert len(problems) == 8
    assert problem(env_of(tiny)) == problem(env_of(tiny, reward="size", alpha=0.7))


def test_images_and_labels_are_part_of_a_problem(tiny: TinyTask) -> None:
    images, labels, judged = (copy.copy(tiny) for _ in range(3))
    images._evaluation = {**tiny._evaluation, "search": tiny._evaluation["test"]}
    labels._train = [TinyBatch(b.images, b.labels.roll(1, 0)) for b in tiny._train]
    search = [TinyBatch(b.images, b.labels.roll(1, 0)) for b in tiny._evaluation["search"]]
    judged._evaluation = {**tiny._evaluation, "search": search}
    tasks = (tiny, images, labels, judged)
    for digest in (identity, problem):
        assert len({digest(env_of(task)) for task in tasks}) == 4
        assert digest(env_of(tiny)) == digest(env_of(copy.deepcopy(tiny)))


def test_batches_of_any_kind_are_read(tiny: TinyTask) -> None:
    class Named(NamedTuple):
        images: torch.Tensor
        labels: torch.Tensor

    @dataclass(slots=True)
    class Slots:
        images: torch.Tensor
        labels: torch.Tensor

    class Bare:
        __slots__ = ("images",)

        def __init__(self, images: torch.Tensor, labels: torch.Tensor) -> None:
            self.images = images

    images, labels = tiny._train[0].images, tiny._train[0].labels
    for kind in (
        Named,
        Slots,
        Bare,
        TinyBatch,
        lambda *given: SimpleNamespace(images=given[0], labels=[{"a": given[1]}]),
    ):
        given = [kind(images, labels), kind(images, labels.roll(1, 0)), kind(images + 1, labels)]
        found = [table_digest(tiny, (), (), labelled=[batch]) for batch in given]
        assert len(set(found)) == (2 if kind is Bare else 3)
        assert found[0] == table_digest(tiny, (), (), labelled=[kind(images.clone(), labels.clone())])


def test_tables_of_labels_are_of_them(tiny: TinyTask) -> None:
    """Those after a repair from the ground truth; distillation alone asks for none."""
    labels = copy.copy(tiny)
    labels._train = [TinyBatch(b.images, b.labels.roll(1, 0)) for b in tiny._train]
    for alpha, same in ((0.5, False), (0.0, True)):
        one, other = (env_of(task, alpha=alpha).repaired_sensitivities for task in (tiny, labels))
        assert np.array_equal(one, other) is same


def test_a_policy_that_learns_is_not_shared(tiny: TinyTask, tmp_path: Path) -> None:
    file = OutcomeFile(tmp_path / "outcomes")
    env = env_of(tiny, distillation="spark", policy_episodes=1)
    env.share(file)
    plan = [4, 8, 5, 0, 8, 6, 4]
    episode(env, plan)
    assert len(file) == 0
    learned = episode(env, plan)
    assert len(file) == LAYERS
    other = env_of(tiny, distillation="spark", policy_episodes=1)
    other.share(file)
    episode(other, plan)
    assert episode(other, plan) == learned
