"""What is known of every layer before any choice."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hsq_env.task import Stage, Task


@dataclass(frozen=True)
class LayerInfo:
    """What is known of a layer before any choice, measured once on the calibration images.

    :param stage: index of the stage that runs it
    :param block: name of the block that is fine-tuned with it
    :param calls: how often it runs per forward pass (heads run on every pyramid level)
    :param macs: multiply-accumulates per image
    :param input_ranges: smallest and largest value seen at its input, per call, since pyramid levels differ widely
    :param input_mean: mean of its input, over all calls
    :param input_std: standard deviation of its input
    :param input_zeros: share of exact zeros at its input
    """

    name: str
    stage: int
    block: str
    shape: tuple[int, ...]
    has_bias: bool
    stride: int
    groups: int
    calls: int
    macs: int
    input_ranges: tuple[tuple[float, float], ...]
    input_mean: float
    input_std: float
    input_zeros: float


class _InputStatistics:
    """Running sums over every call of a layer."""

    def __init__(self, stage: int) -> None:
        self.stage, self.positions = stage, 0
        self.lows: list[float] = []  # of every call of every batch
        self.highs: list[float] = []
        self.count = self.zeros = 0
        self.total = self.squares = 0.0

    def add(self, x: Tensor, y: Tensor, channels: int) -> None:
        self.positions += y.numel() // channels
        self.lows.append(x.min().item())
        self.highs.append(x.max().item())
        self.count += x.numel()
        self.zeros += int((x == 0).sum().item())
        self.total += x.sum(dtype=torch.float64).item()
        self.squares += x.double().square().sum().item()


@torch.no_grad()
def trace_layers(task: Task) -> tuple[LayerInfo, ...]:
    """All Conv2d and Linear modules of the teacher in the order in which they first run."""
    model = task.teacher
    stages = task.stages(model)
    statistics: dict[str, _InputStatistics] = {}
    current = 0
    modules = {name: m for name, m in model.named_modules() if type(m) in (nn.Conv2d, nn.Linear)}

    def hook(name: str) -> Any:
        def record(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            statistics.setdefault(name, _InputStatistics(current)).add(inputs[0], output, len(module.weight))

        return record

    handles = [module.register_forward_hook(hook(name)) for name, module in modules.items()]
    batches = task.calibration()
    try:
        for batch in batches:
            state: dict[str, Any] = {"images": batch.images}
            for current, stage in enumerate(stages):  # noqa: B007 - read by the hooks
                state = stage.run(state)
    finally:
        for handle in handles:
            handle.remove()
    images = sum(batch.images.shape[0] for batch in batches)
    return tuple(
        _layer_info(name, modules[name], s, stages[s.stage], len(batches), images) for name, s in statistics.items()
    )


def _layer_info(
    name: str, module: nn.Module, s: _InputStatistics, stage: Stage, batches: int, images: int
) -> LayerInfo:
    weight, bias = module.weight, module.bias
    assert isinstance(weight, Tensor)
    mean = s.total / s.count
    calls = len(s.lows) // batches
    return LayerInfo(
        name=name,
        stage=s.stage,
        block=stage.block,
        shape=tuple(weight.shape),
        has_bias=bias is not None,
        stride=module.stride[0] if isinstance(module, nn.Conv2d) else 1,
        groups=module.groups if isinstance(module, nn.Conv2d) else 1,
        calls=calls,
        macs=s.positions // images * weight.numel(),
        input_ranges=tuple((min(s.lows[call::calls]), max(s.highs[call::calls])) for call in range(calls)),
        input_mean=mean,
        input_std=max(s.squares / s.count - mean**2, 0.0) ** 0.5,
        input_zeros=s.zeros / s.count,
    )
