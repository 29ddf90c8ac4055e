"""Forward passes that start where the change is: the states before the present block, kept for a list of batches."""

from collections.abc import Iterator, Sequence

import torch

from hsq_env.task import Batch, Stage, State


def run(stages: Sequence[Stage], state: State, start: int = 0, stop: int | None = None) -> State:
    """Run the stages ``start`` to ``stop`` (to the end when None)."""
    for stage in stages[start:stop]:
        state = stage.run(state)
    return state


class KeptStates:
    """The state of every batch before stage ``at``, moved forward as blocks are finished.

    :param batches: whose states are kept
    :param resume: False recomputes every state from the images whenever it is asked for, with equal results
    """

    def __init__(self, batches: Sequence[Batch], resume: bool = True) -> None:
        self.batches, self.resume = batches, resume
        self.reset()

    def reset(self) -> None:
        """Back to the images."""
        self.at = 0
        self._states: list[State] = [{"images": batch.images} for batch in self.batches]

    @torch.no_grad()
    def advance(self, stages: Sequence[Stage], to: int) -> None:
        """Move on to before stage ``to``; the stages passed over must not change any more."""
        if self.resume:
            self._states = [run(stages, state, self.at, to) for state in self._states]
        self.at = to

    @torch.no_grad()
    def state(self, stages: Sequence[Stage], index: int) -> State:
        """The state of one batch before stage ``at``."""
        return self._states[index] if self.resume else run(stages, self._states[index], 0, self.at)

    def each(self, stages: Sequence[Stage]) -> Iterator[tuple[Batch, State]]:
        """Every batch with its state before stage ``at``."""
        for index, batch in enumerate(self.batches):
            yield batch, self.state(stages, index)
