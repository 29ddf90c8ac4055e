"""A task with what the tiny one lacks: a head that runs on three sizes, modules registered in another order than they
run in, and a layer that never runs. Untrained, with a metric that looks at agreement with the teacher.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from safetensors.torch import save
from tiny_task import Distilled, TinyBatch, TinyStage
from torch import Tensor, nn
from torch.nn import functional as F

LEVELS = 3


class PyramidNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(8, 4, 3, padding=1)  # runs last, once per level
        self.spare = nn.Conv2d(8, 8, 1)  # never runs
        self.neck = nn.Conv2d(8, 8, 1, bias=False)
        self.stem = nn.Conv2d(3, 8, 3, padding=1)  # runs first


def _stem(net: PyramidNet, state: dict[str, Any]) -> dict[str, Any]:
    x = torch.relu(net.stem(state["images"]))
    return {"levels": [x * 4.0**level for level in range(LEVELS)]}


def _neck(net: PyramidNet, state: dict[str, Any]) -> dict[str, Any]:
    return {"levels": [F.avg_pool2d(net.neck(x), 2**level) for level, x in enumerate(state["levels"])]}


def _head(net: PyramidNet, state: dict[str, Any]) -> dict[str, Any]:
    return {"logits": torch.cat([net.head(x).flatten(2).transpose(1, 2) for x in state["levels"]], dim=1)}


class PyramidTask:
    """Fits ``hsq_env.task.Task``."""

    name = "pyramid"
    metric_name = "agreement"

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(7)
        self.teacher = PyramidNet()
        for parameter in self.teacher.parameters():
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
        self.teacher.eval().requires_grad_(False)
        images = [torch.randn(4, 3, 8, 8, generator=generator) for _ in range(2)]
        self._batches = [TinyBatch(x, torch.zeros(4, 84, dtype=torch.int64)) for x in images]

    def stages(self, model: nn.Module) -> list[TinyStage]:
        assert isinstance(model, PyramidNet)
        return [
            TinyStage("stem", "body", None, partial(_stem, model)),
            TinyStage("neck", "body", None, partial(_neck, model)),
            TinyStage("head", "head", None, partial(_head, model)),
        ]

    def calibration(self) -> list[TinyBatch]:
        return self._batches

    def finetuning(self) -> list[TinyBatch]:
        return self._batches

    def long_finetuning(self, step: int) -> TinyBatch:
        return self._batches[step % len(self._batches)]

    def evaluation(self, split: str) -> list[TinyBatch]:
        return self._batches

    def task_loss(self, outputs: dict[str, Any], batch: Any) -> Tensor:
        return F.cross_entropy(outputs["logits"].flatten(0, 1), batch.labels.flatten())

    def distilled(self, outputs: dict[str, Any]) -> list[Distilled]:
        return [Distilled("logits", "logits", outputs["logits"])]

    def predictions(self, outputs: dict[str, Any], batch: Any) -> Tensor:
        return outputs["logits"].argmax(dim=-1)

    def metric(self, predictions: Sequence[Any], split: str) -> float:
        return 0.5 + torch.cat(list(predictions)).float().mean().item()

    def describe(self) -> dict[str, Any]:
        return {"model": "PyramidNet"}

    def teacher_file(self) -> bytes:
        return save(self.teacher.state_dict())
