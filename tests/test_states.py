"""Forward passes that start where the change is."""

import torch
from tiny_task import TinyTask

from hsq_env.states import KeptStates, run
from hsq_env.task import Stage, State


class Counting:
    """Stages that note how often each is run."""

    def __init__(self, stages: list) -> None:  # type: ignore[type-arg]
        self.runs = [0] * len(stages)
        self.stages: list[Stage] = [self._wrapped(i, stage) for i, stage in enumerate(stages)]

    def _wrapped(self, index: int, stage: Stage) -> Stage:
        def run_and_count(state: State) -> State:
            self.runs[index] += 1
            return stage.run(state)

        return type(stage)(stage.name, stage.block, run_and_count)  # type: ignore[call-arg]


def test_pieces_of_a_pass_make_the_whole(tiny: TinyTask) -> None:
    stages, images = tiny.stages(tiny.teacher), tiny.evaluation("search")[0].images
    whole = run(stages, {"images": images})["logits"]
    assert torch.equal(whole, tiny.teacher(images))
    for cut in range(len(stages) + 1):
        first = run(stages, {"images": images}, 0, cut)
        assert torch.equal(run(stages, first, cut)["logits"], whole)


def test_kept_states_equal_recomputed_ones(tiny: TinyTask) -> None:
    stages, batches = tiny.stages(tiny.teacher), tiny.evaluation("search")
    kept, recomputed = KeptStates(batches), KeptStates(batches, resume=False)
    for to in (0, 1, 3):
        for states in (kept, recomputed):
            states.advance(stages, to)
            assert states.at == to
        for (batch, one), (same, other) in zip(kept.each(stages), recomputed.each(stages), strict=True):
            assert batch is same and one.keys() == other.keys()
            expected = run(stages, {"images": batch.images}, 0, to)
            for name in one:
                assert torch.equal(one[name], other[name]) and torch.equal(one[name], expected[name])


def test_only_what_is_new_is_run(tiny: TinyTask) -> None:
    counting = Counting(tiny.stages(tiny.teacher))
    kept = KeptStates(tiny.evaluation("search"))  # two batches
    kept.advance(counting.stages, 2)
    kept.advance(counting.stages, 3)
    list(kept.each(counting.stages))
    assert counting.runs == [2, 2, 2, 0]


def test_without_resuming_every_request_starts_from_the_images(tiny: TinyTask) -> None:
    counting = Counting(tiny.stages(tiny.teacher))
    states = KeptStates(tiny.evaluation("search"), resume=False)
    states.advance(counting.stages, 2)
    assert counting.runs == [0, 0, 0, 0]
    list(states.each(counting.stages))
    states.state(counting.stages, 1)
    assert counting.runs == [3, 3, 0, 0]


def test_reset_goes_back_to_the_images(tiny: TinyTask) -> None:
    stages = tiny.stages(tiny.teacher)
    kept = KeptStates(tiny.evaluation("search"))
    kept.advance(stages, 3)
    kept.reset()
    assert kept.at == 0
    for batch, state in kept.each(stages):
        assert list(state) == ["images"] and state["images"] is batch.images


def test_states_need_no_gradients(tiny: TinyTask) -> None:
    stages = tiny.stages(tiny.teacher)
    kept = KeptStates(tiny.evaluation("search"))
    try:
        tiny.teacher.requires_grad_(True)
        kept.advance(stages, 2)
        assert not any(state["x"].requires_grad for _, state in kept.each(stages))
    finally:
        tiny.teacher.requires_grad_(False)
