"""Forward passes that start where the change is."""

import numpy as np
import pytest
import torch
from pyramid_task import PyramidTask
from tiny_task import TinyBatch, TinyStage, TinyTask

from hsq_env.states import Dependencies, KeptStates, Route, run, straight
from hsq_env.task import Stage, State

LETTERS = "abcdef"
NO_LABELS = torch.zeros(1, 4, dtype=torch.int64)


class Counting:
    """Stages that note how often each is run."""

    def __init__(self, stages: list) -> None:  # type: ignore[type-arg]
        self.runs = [0] * len(stages)
        self.stages: list[Stage] = [self._wrapped(i, stage) for i, stage in enumerate(stages)]

    def _wrapped(self, index: int, stage: Stage) -> Stage:
        def run_and_count(state: State) -> State:
            self.runs[index] += 1
            return stage.run(state)

        return type(stage)(stage.name, stage.block, stage.reads, run_and_count)  # type: ignore[call-arg]


def states_of(kept: KeptStates, stages: list[Stage]) -> list[State]:
    return [kept.state(stages, index) for index in range(len(kept.batches))]


def test_pieces_of_a_pass_make_the_whole(tiny: TinyTask) -> None:
    stages, images = tiny.stages(tiny.teacher), tiny.evaluation("search")[0].images
    whole = run(stages, {"images": images})["logits"]
    assert torch.equal(whole, tiny.teacher(images))
    for cut in range(len(stages) + 1):
        first = run(stages, {"images": images}, 0, cut)
        assert torch.equal(run(stages, first, cut)["logits"], whole)
        assert torch.equal(straight(cut, len(stages)).finish(stages, first)["logits"], whole)


def test_kept_states_equal_recomputed_ones(tiny: TinyTask) -> None:
    stages, batches = tiny.stages(tiny.teacher), tiny.evaluation("search")
    kept, recomputed = KeptStates(batches), KeptStates(batches, resume=False)
    for to in (0, 1, 3):
        for states in (kept, recomputed):
            states.enter(straight(to, 4))
        for index, batch in enumerate(batches):
            one, other = kept.state(stages, index), recomputed.state(stages, index)
            assert one.keys() == other.keys()
            expected = run(stages, {"images": batch.images}, 0, to)
            for name in one:
                assert torch.equal(one[name], other[name]) and torch.equal(one[name], expected[name])


def test_only_what_is_new_and_asked_for_is_run(tiny: TinyTask) -> None:
    counting = Counting(tiny.stages(tiny.teacher))
    kept = KeptStates(tiny.evaluation("search"))  # two batches
    kept.enter(straight(2, 4))
    assert counting.runs == [0, 0, 0, 0]
    states_of(kept, counting.stages)
    kept.enter(straight(3, 4))
    kept.state(counting.stages, 1)
    kept.state(counting.stages, 1)
    assert counting.runs == [2, 2, 1, 0]


def test_without_resuming_every_request_starts_from_the_images(tiny: TinyTask) -> None:
    counting = Counting(tiny.stages(tiny.teacher))
    states = KeptStates(tiny.evaluation("search"), resume=False)
    states.enter(straight(2, 4))
    assert counting.runs == [0, 0, 0, 0]
    states_of(states, counting.stages)
    states.state(counting.stages, 1)
    assert counting.runs == [3, 3, 0, 0]


def test_reset_goes_back_to_the_images(tiny: TinyTask) -> None:
    stages = tiny.stages(tiny.teacher)
    kept = KeptStates(tiny.evaluation("search"))
    kept.enter(straight(3, 4))
    states_of(kept, stages)
    kept.reset()
    kept.enter(straight(0, 4))
    for batch, state in zip(kept.batches, states_of(kept, stages), strict=True):
        assert list(state) == ["images"] and state["images"] is batch.images


@pytest.mark.parametrize(("to", "again"), [(0, [2, 2, 2, 0]), (2, [2, 2, 2, 0]), (3, [1, 1, 1, 0])])
def test_rewinding_forgets_what_lies_behind(tiny: TinyTask, to: int, again: list[int]) -> None:
    counting = Counting(tiny.stages(tiny.teacher))
    kept = KeptStates(tiny.evaluation("search"))
    kept.enter(straight(3, 4))
    kept.state(counting.stages, 0)
    kept.rewind(to)
    kept.state(counting.stages, 0)
    assert counting.runs == again


def test_an_earlier_block_starts_from_the_images_again(tiny: TinyTask) -> None:
    stages = tiny.stages(tiny.teacher)
    kept = KeptStates(tiny.evaluation("search"))
    for to in (3, 1, 2, 0):
        kept.enter(straight(to, 4))
        for batch, state in zip(kept.batches, states_of(kept, stages), strict=True):
            expected = run(stages, {"images": batch.images}, 0, to)
            assert all(torch.equal(state[name], expected[name]) for name in expected)


def test_a_fork_moves_on_its_own(tiny: TinyTask) -> None:
    counting = Counting(tiny.stages(tiny.teacher))
    kept = KeptStates(tiny.evaluation("search"))
    kept.enter(straight(1, 4))
    first = kept.state(counting.stages, 0)
    fork = kept.fork()
    fork.enter(straight(3, 4))
    fork.state(counting.stages, 0)
    assert counting.runs == [1, 1, 1, 0]
    assert kept.state(counting.stages, 0) is first and kept.route.start == 1


def test_states_need_no_gradients(tiny: TinyTask) -> None:
    stages = tiny.stages(tiny.teacher)
    kept = KeptStates(tiny.evaluation("search"))
    try:
        tiny.teacher.requires_grad_(True)
        kept.enter(straight(2, 4))
        assert not any(state["x"].requires_grad for state in states_of(kept, stages))
    finally:
        tiny.teacher.requires_grad_(False)


# ---- which stages depend on which


def stage(name: str, reads: str | None, writes: str, weights: dict[str, float], forgets: str = "") -> TinyStage:
    """Writes sums of what it reads, scaled by its own weight; may drop keys of the state, as real stages do."""

    def compute(state: State) -> State:
        total = sum((state[key] for key in (reads or sorted(state))), torch.zeros(1)) * weights[name]
        new = {key: total + place for place, key in enumerate(writes)}
        return {**{k: v for k, v in state.items() if k not in forgets}, **new}

    return TinyStage(name, name, None if reads is None else frozenset(reads), compute)


def towers(weights: dict[str, float]) -> list[TinyStage]:
    """A body, two towers of two stages on it, and a stage that joins them."""
    return [
        TinyStage("body", "body", frozenset({"images"}), lambda state: {"f": state["images"] * weights["body"]}),
        stage("left.0", "f", "l", weights),
        stage("left.1", "l", "a", weights, forgets="l"),
        stage("right.0", "f", "r", weights),
        stage("right.1", "r", "b", weights, forgets="r"),
        stage("join", "ab", "c", weights),
    ]


def dependencies(stages: list[TinyStage]) -> Dependencies:
    return Dependencies(stages, TinyBatch(torch.ones(1), NO_LABELS))


def test_the_other_tower_is_free() -> None:
    weights = dict.fromkeys(("body", "left.0", "left.1", "right.0", "right.1", "join"), 2.0)
    made = dependencies(towers(weights))
    assert made.route(range(0, 1)) == straight(0, 6)
    assert made.route(range(1, 3)) == Route(1, (3, 4), (1, 2, 5))
    assert made.route(range(3, 5)) == Route(3, (), (3, 4, 5))
    kept, counting = KeptStates([TinyBatch(torch.ones(1), NO_LABELS)]), Counting(towers(weights))
    kept.enter(made.route(range(1, 3)))
    for weight in (3.0, 5.0):
        weights["left.0"] = weight
        found = kept.route.finish(counting.stages, kept.state(counting.stages, 0))
        expected = run(towers(weights), {"images": torch.ones(1)})
        assert all(torch.equal(found[key], expected[key]) for key in "abc")
    assert counting.runs == [1, 2, 2, 1, 1, 2]


def test_a_stage_may_not_overwrite_what_an_earlier_one_still_reads() -> None:
    weights = {"body": 2.0, "one": 3.0, "two": 4.0, "three": 5.0}
    body = TinyStage("body", "body", frozenset({"images"}), lambda s: {"a": s["images"] * weights["body"]})
    once_more = [
        body,
        stage("one", "a", "b", weights),
        stage("two", "a", "a", weights),
        stage("three", "ab", "c", weights),
    ]
    assert dependencies(once_more).route(range(1, 2)) == straight(1, 4)  # "two" writes what "one" reads


def test_unknown_reads_depend_on_everything() -> None:
    task = PyramidTask()
    made = Dependencies(task.stages(task.teacher), task.calibration()[0])
    assert [made.route(range(i, i + 1)) for i in range(3)] == [straight(i, 3) for i in range(3)]
    weights = {"body": 2.0, "one": 3.0, "two": 4.0, "three": 5.0}
    body = TinyStage("body", "body", frozenset({"images"}), lambda s: {"a": s["images"] * weights["body"]})
    stages = [
        body,
        stage("one", "a", "b", weights),
        stage("two", "a", "c", weights),
        stage("three", None, "d", weights),
    ]
    assert dependencies(stages).route(range(1, 2)) == straight(1, 4)
    assert dependencies(stages[:3]).route(range(1, 2)) == Route(1, (2,), (1,))


def test_undeclared_reads_are_noticed() -> None:
    stages = towers(dict.fromkeys(("body", "left.0", "left.1", "right.0", "right.1", "join"), 1.0))
    lying = TinyStage("left.0", "left.0", frozenset({"images"}), stages[1].run)
    with pytest.raises(KeyError, match="f"):
        dependencies([stages[0], lying, *stages[2:]])


def test_any_route_gives_what_the_plain_pass_gives() -> None:
    """Random graphs of stages that read, write, overwrite and drop keys."""
    rng, with_free = np.random.default_rng(0), 0
    for _ in range(400):
        weights = {str(i): float(rng.integers(1, 5)) for i in range(7)}

        def first(state: State, weights: dict[str, float] = weights) -> State:
            return {key: state["images"] * weights["0"] + place for place, key in enumerate(LETTERS)}

        stages = [TinyStage("0", "0", frozenset({"images"}), first)]
        for i in range(1, 7):
            reads, writes = ("".join(rng.choice(list(LETTERS), rng.integers(1, 3), replace=False)) for _ in range(2))
            stages.append(stage(str(i), reads, writes, weights))
        start = int(rng.integers(0, 7))
        block = range(start, int(rng.integers(start + 1, 8)))
        route = dependencies(stages).route(block)
        kept = KeptStates([TinyBatch(torch.ones(1), NO_LABELS)])
        kept.enter(route)
        route.finish(stages, kept.state(stages, 0))
        for changed in block:
            weights[str(changed)] += 1
        found, expected = route.finish(stages, kept.state(stages, 0)), run(stages, {"images": torch.ones(1)})
        assert all(torch.equal(found[key], expected[key]) for key in expected)
        with_free += bool(route.free)
    assert with_free > 20
