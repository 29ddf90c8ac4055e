"""A task small enough for an episode of about a second: which of three textures fills each quarter of an image."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F

CLASSES, SIDE = 3, 16


@dataclass(frozen=True)
class TinyBatch:
    images: Tensor  # (N, 1, 16, 16)
    labels: Tensor  # (N, 4)


@dataclass(frozen=True)
class Distilled:
    name: str
    kind: str
    tensor: Tensor


@dataclass(frozen=True)
class TinyStage:
    name: str
    block: str
    reads: frozenset[str] | None
    run: Any


def draw(count: int, seed: int) -> TinyBatch:
    """Quarters with horizontal, vertical or checkered stripes under noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CLASSES, (count, 4), generator=generator)
    y, x = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    patterns = torch.stack([y % 2, x % 2, (x + y) % 2]).float() * 2 - 1
    quarters = patterns[labels]  # (count, 4, 8, 8)
    images = quarters.reshape(count, 2, 2, 8, 8).permute(0, 1, 3, 2, 4).reshape(count, 1, SIDE, SIDE)
    return TinyBatch(images + 2.2 * torch.randn(images.shape, generator=generator), labels)


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.conv2(torch.relu(self.conv1(x))))


class TinyNet(nn.Module):
    """Seven layers: a stem, two residual blocks, and a head of a convolution with group norm and a linear layer."""

    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, channels, 3, padding=1, stride=2)
        self.block1, self.block2 = Residual(channels), Residual(channels)
        self.head = nn.Sequential(nn.Conv2d(channels, channels, 1, bias=False), nn.GroupNorm(4, channels), nn.ReLU())
        self.logits = nn.Linear(channels, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(self.block2(self.block1(torch.relu(self.stem(x)))))
        return self.logits(F.avg_pool2d(x, 4).flatten(2).transpose(1, 2))


def _stem(net: TinyNet, state: dict[str, Any]) -> dict[str, Any]:
    return {"x": torch.relu(net.stem(state["images"]))}


def _block(block: nn.Module, state: dict[str, Any]) -> dict[str, Any]:
    return {"x": block(state["x"])}


def _logits(net: TinyNet, state: dict[str, Any]) -> dict[str, Any]:
    pooled = F.avg_pool2d(net.head(state["x"]), 4).flatten(2).transpose(1, 2)
    return {"features": state["x"], "logits": net.logits(pooled)}


class TinyTask:
    """Fits ``hsq_env.task.Task``."""

    name = "tiny"
    metric_name = "mAP"  # it is none, but results are named after it

    def __init__(self, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.teacher = TinyNet()
        self._train = [draw(32, seed=100 + i) for i in range(8)]
        self._evaluation = {"search": [draw(32, 1), draw(32, 2)], "test": [draw(32, 3), draw(32, 4)]}
        optimizer = torch.optim.Adam(self.teacher.parameters(), lr=5e-3)
        for step in range(160):
            batch = self._train[step % len(self._train)]
            loss = F.cross_entropy(self.teacher(batch.images).flatten(0, 1), batch.labels.flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        self.teacher.eval().requires_grad_(False)

    def stages(self, model: nn.Module) -> list[TinyStage]:
        assert isinstance(model, TinyNet)
        return [
            TinyStage("stem", "stem", frozenset({"images"}), partial(_stem, model)),
            TinyStage("block1", "block1", frozenset({"x"}), partial(_block, model.block1)),
            TinyStage("block2", "block2", frozenset({"x"}), partial(_block, model.block2)),
            TinyStage("head", "head", frozenset({"x"}), partial(_logits, model)),
        ]

    def calibration(self) -> list[TinyBatch]:
        return self._train[:1]

    def finetuning(self) -> list[TinyBatch]:
        return self._train[:4]

    def long_finetuning(self, step: int) -> TinyBatch:
        return self._train[step % len(self._train)]

    def evaluation(self, split: str) -> list[TinyBatch]:
        return self._evaluation[split]

    def task_loss(self, outputs: dict[str, Any], batch: Any) -> Tensor:
        return F.cross_entropy(outputs["logits"].flatten(0, 1), batch.labels.flatten())

    def distilled(self, outputs: dict[str, Any]) -> list[Distilled]:
        return [
            Distilled("logits", "logits", outputs["logits"]),
            Distilled("block2", "features", outputs["features"]),
        ]

    def predictions(self, outputs: dict[str, Any], batch: Any) -> Tensor:
        return outputs["logits"].argmax(dim=-1) == batch.labels

    def metric(self, predictions: Sequence[Any], split: str) -> float:
        return torch.cat(list(predictions)).float().mean().item()

    def describe(self) -> dict[str, Any]:
        return {"model": "TinyNet"}

    def teacher_file(self) -> bytes:
        return save(self.teacher.state_dict())


@cache
def the_tiny_task() -> TinyTask:
    """The one that tests share."""
    return TinyTask()
