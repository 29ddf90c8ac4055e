"""A network that is cut into stages as one module, from images to the tensors that its last stage puts out."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from hsq_env.states import run
from hsq_env.task import Stage, State

Stages = Callable[[nn.Module], Sequence[Stage]]


class PostProcessing(Protocol):
    """What stands before and behind a network in a file that takes images as they are."""

    def prepare(self, images: Tensor) -> Tensor:
        """What the network is given."""

    def finish(self, model: Any, state: State, images: Tensor) -> dict[str, Tensor]:
        """What is put out in place of the last stage's state.

        :param images: as the file was given them
        """


class RawOutputs(nn.Module):
    """A network from images to the tensors that its last stage puts out.

    :param stages: makes the forward pass of ``model``
    :param around: post-processing, if there is any
    """

    def __init__(self, model: nn.Module, stages: Stages, around: PostProcessing | None = None) -> None:
        super().__init__()
        self.model, self._stages, self._around = model, stages(model), around

    def state(self, images: Tensor) -> dict[str, Tensor]:
        """The outputs by name."""
        if self._around is not None:
            return self._around.finish(self.model, run(self._stages, {"images": self._around.prepare(images)}), images)
        found = run(self._stages, {"images": images})
        return {name: value for name, value in found.items() if isinstance(value, Tensor)}

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """The same in order."""
        return tuple(self.state(images).values())
