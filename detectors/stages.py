"""A forward pass cut into consecutive pieces, and the pieces that heads of all kinds of detectors share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

State = dict[str, Any]  # tensors or lists of tensors by name


@dataclass(frozen=True)
class Stage:
    """One piece of a forward pass.

    ``run`` takes the state that the previous stage returned (tensors or lists of tensors by name) and returns a new
    one, leaving its argument as it was; ``reads`` names the keys that it looks at. Consecutive stages of one ``block``
    are fine-tuned together.
    """

    name: str
    block: str
    reads: frozenset[str] | None
    run: Callable[[State], State]


class Runs(Protocol):
    """A piece of a forward pass, of whatever kind."""

    @property
    def run(self) -> Callable[[State], State]:
        """See ``Stage``."""


def run_stages(stages: Sequence[Runs], state: State) -> State:
    """Run consecutive stages."""
    for stage in stages:
        state = stage.run(state)
    return state


def as_read(layer: nn.Module, x: Tensor) -> Tensor:
    """``x`` as a layer that runs once in a forward pass computes with it.

    Layers that round what they read have a method ``handed_on``; for all others it is ``x`` itself.
    """
    rounded: Tensor = layer.handed_on(x) if hasattr(layer, "handed_on") else x  # type: ignore[operator]
    return rounded


def without(state: State, *names: str) -> State:
    """The state less some of its entries."""
    return {key: value for key, value in state.items() if key not in names}


def run_tower(modules: Sequence[nn.Module], name: str, first: bool, state: State) -> State:
    """Modules of a head's tower on every pyramid map; the maps become the state's ``name``."""
    maps = state["features"] if first else state[name]
    for module in modules:
        maps = [module(x) for x in maps]
    return {**state, name: maps}


def per_anchor(x: Tensor, columns: int) -> Tensor:
    """(N, anchors * columns, H, W) to (N, H * W * anchors, columns), torchvision's order."""
    count, _, height, width = x.shape
    return x.view(count, -1, columns, height, width).permute(0, 3, 4, 1, 2).reshape(count, -1, columns)
