"""Forward passes that start where the change is: the states before the present block, kept for a list of batches."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch

from detectors.stages import run_stages
from hsq_env.task import Batch, Distilled, Stage, State, Task


def run(stages: Sequence[Stage], state: State, start: int = 0, stop: int | None = None) -> State:
    """Run the stages ``start`` to ``stop`` (to the end when None)."""
    return run_stages(stages[start:stop], state)


def _run_beside(stages: Sequence[Stage], state: State, indices: Sequence[int]) -> State:
    """Run some stages out of a sequence, keeping everything that the others have put into the state."""
    for index in indices:
        state = {**state, **stages[index].run(state)}
    return state


@dataclass(frozen=True)
class Route:
    """The order of a forward pass once the stages of a block change and nothing before them does.

    :param start: the block's first stage
    :param free: later stages that do not depend on the block, which need to run only once
    :param rest: the block and all stages that depend on it
    """

    start: int
    free: tuple[int, ...]
    rest: tuple[int, ...]

    def finish(self, stages: Sequence[Stage], state: State) -> State:
        """The last stage's state, from a state before ``start`` in which the free stages have run."""
        return _run_beside(stages, state, self.rest) if self.free else run(stages, state, self.start)


class Dependencies:
    """Which stage needs what, from the keys that stages say they read and are seen to write.

    :param stages: stages whose ``reads`` is None count as reading everything
    :param batch: on which one forward pass is run
    """

    @torch.no_grad()
    def __init__(self, stages: Sequence[Stage], batch: Batch) -> None:
        self.reads = [stage.reads for stage in stages]
        self.writes: list[frozenset[str]] = []
        state: State = {"images": batch.images}
        for stage, reads in zip(stages, self.reads, strict=True):
            given = state if reads is None else {key: state[key] for key in reads if key in state}
            after = stage.run(given)
            self.writes.append(frozenset(k for k, v in after.items() if k not in given or v is not given[k]))
            state = {**state, **after}

    def route(self, block: range) -> Route:
        """The shortest way through once ``block`` has changed."""
        changed: set[str] = set()
        in_use: set[str] = set()  # by stages that stay in order: a free stage may not write there before them
        free, rest = [], []
        for index in range(block.start, len(self.reads)):
            reads, writes = self.reads[index], self.writes[index]
            if index in block or reads is None or reads & changed or writes & in_use:
                rest.append(index)
                changed |= writes
                in_use |= writes | (reads or set())
            else:
                free.append(index)
        if any(self.reads[index] is None for index in rest):  # it may read what a free stage wrote too early
            return straight(block.start, len(self.reads))
        return Route(block.start, tuple(free), tuple(rest))


def straight(start: int, stages: int) -> Route:
    """The route that runs everything from ``start`` on."""
    return Route(start, (), tuple(range(start, stages)))


class KeptStates:
    """The state of every batch before the present block, moved forward when it is asked for.

    :param batches: whose states are kept
    :param resume: False recomputes every state from the images whenever it is asked for, with equal results
    :param tuning: run a route's free stages as fine-tuning runs the others: kernels may depend on whether gradients
        are allowed
    :param bfloat16: and under autocast
    """

    def __init__(
        self, batches: Sequence[Batch], resume: bool = True, tuning: bool = False, bfloat16: bool = False
    ) -> None:
        self.batches, self.resume, self.tuning, self.bfloat16 = batches, resume, tuning, bfloat16
        self.route = Route(0, (), ())
        self.reset()

    def reset(self) -> None:
        """Back to the images."""
        self._at = [0] * len(self.batches)
        self._states: list[State] = [{"images": batch.images} for batch in self.batches]
        self._prepared: dict[int, State] = {}  # with the route's free stages run

    def rewind(self, to: int) -> None:
        """Forget what was computed with stages from ``to`` on, which have changed."""
        for index, at in enumerate(self._at):
            if at > to:
                self._at[index], self._states[index] = 0, {"images": self.batches[index].images}
        self._prepared.clear()

    def enter(self, route: Route) -> None:
        """Take the route of another block; the stages before it must not change any more."""
        if route != self.route:
            self.route = route
            self._prepared.clear()

    @torch.no_grad()
    def state(self, stages: Sequence[Stage], index: int) -> State:
        """The state of one batch from which ``route.finish`` goes on."""
        start = self.route.start
        if not self.resume:
            return run(stages, {"images": self.batches[index].images}, 0, start)
        if self._at[index] > start:
            self._at[index], self._states[index] = 0, {"images": self.batches[index].images}
        if self._at[index] != start:
            self._states[index] = run(stages, self._states[index], self._at[index], start)
            self._at[index] = start
        if not self.route.free:
            return self._states[index]
        if index not in self._prepared:
            self._prepared[index] = self._with_free_stages(stages, index)
        return self._prepared[index]

    def _with_free_stages(self, stages: Sequence[Stage], index: int) -> State:
        device = self.batches[index].images.device.type
        autocast = torch.autocast(device, torch.bfloat16) if self.bfloat16 else nullcontext()
        with torch.set_grad_enabled(self.tuning), autocast:
            state = _run_beside(stages, self._states[index], self.route.free)
        return {k: [t.detach() for t in v] if isinstance(v, list) else v.detach() for k, v in state.items()}

    def fork(self) -> "KeptStates":
        """The same states, to be moved forward on their own; the tensors are shared."""
        other = KeptStates(self.batches, self.resume, self.tuning, self.bfloat16)
        other.route, other._at, other._states = self.route, list(self._at), list(self._states)
        other._prepared = dict(self._prepared)
        return other


@torch.no_grad()
def distilled_example(task: Task) -> Sequence[Distilled]:
    """What a task distils: the teacher's on the first calibration batch."""
    return task.distilled(run(task.stages(task.teacher), {"images": task.calibration()[0].images}))


def distilled_kinds(task: Task) -> set[str]:
    """What kinds of outputs a task distils."""
    return {item.kind for item in distilled_example(task)}
