"""What a model must provide to be compressed: a protocol, to be fitted and not inherited from."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from detectors.stages import State as State


class Stage(Protocol):
    """One of the consecutive pieces of a forward pass."""

    @property
    def name(self) -> str:
        """Unique within the model."""

    @property
    def block(self) -> str:
        """Consecutive stages of one block are fine-tuned together."""

    @property
    def reads(self) -> frozenset[str] | None:
        """The keys of the state that it looks at, so that it need not run again when only others change.

        None for all of them, which is always right. It must also run on a state that holds these keys alone.
        """

    @property
    def run(self) -> Callable[[State], State]:
        """From the previous stage's state to the next; leaves its argument as it was."""


class Batch(Protocol):
    """Images with whatever the task needs beside them."""

    @property
    def images(self) -> Tensor:
        """(N, C, H, W), ready for the network."""


class Distilled(Protocol):
    """One output or feature map that the student learns from the teacher."""

    @property
    def name(self) -> str:
        """Unique among what a task distils."""

    @property
    def kind(self) -> str:
        """What it is.

        "logits" (N, L, classes), independent class logits per location; "categories" (N, L, classes), logits of one
        class out of all, the background first; "boxes" (N, L, D), box outputs per location; "centerness" (N, L, 1),
        one logit per location; "features" (N, C, H, W); "pixels" (N, C, H, W). Where L is the places of all feature
        maps, or so many times that, locations lie row by row, map by map, anchors of a place together.
        """

    @property
    def tensor(self) -> Tensor:
        """In the shape of its kind."""


class Task(Protocol):
    """A teacher with its data and its metric.

    Immutable once built, so that forks, workers and threads share it. Batches must be the same objects or equal ones
    at every call.
    """

    name: str
    metric_name: str  # "mAP", "PSNR"
    teacher: Any  # an nn.Module, frozen, in evaluation mode, batch norm folded

    def stages(self, model: Any) -> Sequence[Stage]:
        """The forward pass of the teacher or a copy of it; the first stage takes ``{"images": (N, C, H, W)}``."""

    def calibration(self) -> Sequence[Batch]:
        """Batches of the training split on which activation ranges and sensitivities are measured."""

    def finetuning(self) -> Sequence[Batch]:
        """A fixed pool of training batches for the brief fine-tuning in a step."""

    def long_finetuning(self, step: int) -> Batch:
        """A seeded training batch for the long fine-tuning after the search."""

    def evaluation(self, split: str) -> Sequence[Batch]:
        """All batches of "search" or "test"."""

    def task_loss(self, outputs: State, batch: Any) -> Tensor:
        """The loss against the ground truth, from the last stage's state; a scalar."""

    def distilled(self, outputs: State) -> Sequence[Distilled]:
        """What is distilled, from the last stage's state."""

    def predictions(self, outputs: State, batch: Any) -> Any:
        """What ``metric`` needs to know of one batch's outputs.

        With whole channels dropped, tensors of the last stage's state keep their values; of lists in it (feature maps)
        only the sizes may be looked at.
        """

    def metric(self, predictions: Sequence[Any], split: str) -> float:
        """The figure that counts, higher is better, from one entry per batch of ``evaluation(split)``."""

    def describe(self) -> dict[str, Any]:
        """JSON from which the model (without weights) can be rebuilt; stored in the ``.hsq`` file."""

    def teacher_file(self) -> bytes:
        """The content of the float32 teacher file, against whose length ratios are counted."""


@runtime_checkable
class QuickMetric(Protocol):
    """What a task may add: the same metric of the search split, sooner.

    The environment uses it in its steps where ``Shortcuts.metric`` is on; final figures never come from it.
    """

    def quick_predictions(self, outputs: State, batch: Any) -> Any:
        """Stands in for ``predictions``; on an accelerator it must not wait for the device."""

    def quick_metric(self, predictions: Sequence[Any]) -> float:
        """``metric`` of the search split, up to rounding."""


@runtime_checkable
class Untreated(Protocol):
    """What a task may add: the metric that images have before any network, above which accuracy begins."""

    def untreated_metric(self, split: str) -> float:
        """Of "search" or "test"."""


@runtime_checkable
class ErrorMaps(Protocol):
    """What a task may add: where the student is wrong. Without it SPARK's policy does not see errors."""

    def error_maps(self, outputs: State, batch: Any) -> Sequence[Tensor]:
        """The error against the ground truth per location, from the last stage's state: maps (N, H, W)."""
