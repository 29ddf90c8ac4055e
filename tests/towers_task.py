"""A task with what the tiny one lacks: two towers on one body, of two stages each, a last stage that joins them, and
linear layers whose inputs are not contiguous. Untrained, with a metric that every output changes.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from safetensors.torch import save
from tiny_task import Distilled, TinyBatch, TinyStage
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH, MIXED, CLASSES = 12, 5, 5


class TowersNet(nn.Module):
    """A body of a convolution and a linear layer, and on it a tower for classes and one for places."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTH, 3, padding=1)
        self.mix = nn.Linear(WIDTH, MIXED)
        self.kinds = nn.ModuleList([nn.Conv2d(MIXED, WIDTH, 3, padding=1), nn.Linear(WIDTH, CLASSES)])
        self.places = nn.ModuleList([nn.Linear(MIXED, MIXED), nn.Conv2d(MIXED, 4, 3, padding=1)])


def over_channels(layer: nn.Module, x: Tensor) -> Tensor:
    """A linear layer over the channels of (N, C, H, W); neither its input nor its output is contiguous."""
    y: Tensor = layer(x.flatten(2).transpose(1, 2))
    return y.transpose(1, 2).unflatten(2, x.shape[2:])


def _stem(net: TowersNet, state: dict[str, Any]) -> dict[str, Any]:
    return {"x": torch.relu(net.stem(state["images"]))}


def _mix(net: TowersNet, state: dict[str, Any]) -> dict[str, Any]:
    return {"features": torch.relu(over_channels(net.mix, state["x"]))}


def _kinds0(net: TowersNet, state: dict[str, Any]) -> dict[str, Any]:
    return {**state, "kinds": torch.relu(net.kinds[0](state["features"]))}


def _kinds1(net: TowersNet, state: dict[str, Any]) -> dict[str, Any]:
    logits = over_channels(net.kinds[1], state["kinds"]).flatten(2).transpose(1, 2)
    return {**{k: v for k, v in state.items() if k != "kinds"}, "alone": logits}


def _places0(net: TowersNet, state: dict[str, Any]) -> dict[str, Any]:
    return {**state, "places": torch.relu(over_channels(net.places[0], state["features"]))}


def _places1(net: TowersNet, state: dict[str, Any]) -> dict[str, Any]:
    boxes = torch.relu(net.places[1](state["places"])).flatten(2).transpose(1, 2)
    return {**{k: v for k, v in state.items() if k != "places"}, "boxes": boxes}


def _join(state: dict[str, Any]) -> dict[str, Any]:
    """What one tower says of a location counts for the other: its gradient depends on both."""
    logits = state["alone"] * (1 + state["boxes"].mean(dim=-1, keepdim=True))
    return {"features": state["features"], "boxes": state["boxes"], "logits": logits}


class TowersTask:
    """Fits ``hsq_env.task.Task``."""

    name = "towers"
    metric_name = "agreement"

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(3)
        self.teacher = TowersNet()
        for parameter in self.teacher.parameters():
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
        self.teacher.eval().requires_grad_(False)
        images = [torch.randn(4, 3, 8, 8, generator=generator) for _ in range(4)]
        labels = torch.randint(0, CLASSES, (4, 4, 64), generator=generator)
        self._batches = [TinyBatch(*pair) for pair in zip(images, labels, strict=True)]

    def stages(self, model: nn.Module) -> list[TinyStage]:
        assert isinstance(model, TowersNet)
        return [
            TinyStage("stem", "stem", frozenset({"images"}), partial(_stem, model)),
            TinyStage("mix", "mix", frozenset({"x"}), partial(_mix, model)),
            TinyStage("kinds.0", "kinds", frozenset({"features"}), partial(_kinds0, model)),
            TinyStage("kinds.1", "kinds", frozenset({"kinds"}), partial(_kinds1, model)),
            TinyStage("places.0", "places", frozenset({"features"}), partial(_places0, model)),
            TinyStage("places.1", "places", frozenset({"places"}), partial(_places1, model)),
            TinyStage("join", "join", frozenset({"alone", "boxes", "features"}), _join),
        ]

    def calibration(self) -> list[TinyBatch]:
        return self._batches[:1]

    def finetuning(self) -> list[TinyBatch]:
        return self._batches[:3]

    def long_finetuning(self, step: int) -> TinyBatch:
        return self._batches[step % len(self._batches)]

    def evaluation(self, split: str) -> list[TinyBatch]:
        return self._batches[2:]

    def task_loss(self, outputs: dict[str, Any], batch: Any) -> Tensor:
        return F.cross_entropy(outputs["logits"].flatten(0, 1), batch.labels.flatten()) + outputs["boxes"].mean()

    def distilled(self, outputs: dict[str, Any]) -> list[Distilled]:
        return [
            Distilled("logits", "logits", outputs["logits"]),
            Distilled("boxes", "boxes", outputs["boxes"]),
            Distilled("mix", "features", outputs["features"]),
        ]

    def predictions(self, outputs: dict[str, Any], batch: Any) -> Tensor:
        return torch.stack([outputs["logits"].double().abs().mean(), outputs["boxes"].double().mean()])

    def metric(self, predictions: Sequence[Any], split: str) -> float:
        return torch.stack(list(predictions)).sum().item()

    def describe(self) -> dict[str, Any]:
        return {"model": "TowersNet"}

    def teacher_file(self) -> bytes:
        return save(self.teacher.state_dict())
