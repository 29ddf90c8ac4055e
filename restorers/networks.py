"""Restoration networks: DnCNN, to which published weights fit by name, EDSR-baseline and SRResNet."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from detectors.stages import Stage, State, as_read, run_stages

RGB_MEAN = (0.4488, 0.4371, 0.4040)  # of DIV2K, which EDSR subtracts


class DnCNN(nn.Module):
    """Predicts the noise, which is subtracted (Zhang et al. 2017, arXiv 1608.03981, section III-A).

    It is subtracted from the image as the first layer reads it: where that layer rounds, the network takes the rounding
    for noise like any other, and removes it.

    :param channels: of images
    :param depth: convolutions
    :param width: channels between them
    """

    def __init__(self, channels: int = 1, depth: int = 17, width: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.ReLU()]
        for _ in range(depth - 2):
            layers += [nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        layers.append(nn.Conv2d(width, channels, 3, padding=1, bias=False))
        self.dncnn = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        """From noisy to clean images, (N, channels, H, W), in [0, 1]."""
        return _restored(self.stages(), images)

    def stages(self) -> list[Stage]:
        """One per convolution, in blocks of two, and the subtraction."""
        parts: list[list[nn.Module]] = []
        for module in self.dncnn:
            if isinstance(module, nn.Conv2d):
                parts.append([])
            parts[-1].append(module)
        stages = []
        for i, part in enumerate(parts):
            source = "images" if i == 0 else "x"
            run = partial(_chain, part, source) if i else partial(_run_first, part)
            stages.append(_stage(f"conv{i}", f"block{i // 2}", {source}, run))
        return [*stages, _stage("subtract", stages[-1].block, {"images", "x"}, _subtract_noise)]


class ResidualBlock(nn.Module):
    """Two convolutions beside an identity, with batch norm and PReLU as in SRResNet or with ReLU alone as in EDSR."""

    def __init__(self, width: int, batch_norm: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.bn1: nn.Module = nn.BatchNorm2d(width) if batch_norm else nn.Identity()
        self.act: nn.Module = nn.PReLU() if batch_norm else nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.bn2: nn.Module = nn.BatchNorm2d(width) if batch_norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(N, width, H, W) to the same."""
        return x + self.bn2(self.conv2(self.act(self.bn1(self.conv1(x)))))


class Upscaler(nn.Module):
    """Convolution and pixel shuffle (Shi et al. 2016, arXiv 1609.05158) by 2, with a PReLU where asked for."""

    def __init__(self, width: int, prelu: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, 4 * width, 3, padding=1)
        self.shuffle = nn.PixelShuffle(2)
        self.act: nn.Module = nn.PReLU() if prelu else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(N, width, H, W) to (N, width, 2 H, 2 W)."""
        out: Tensor = self.act(self.shuffle(self.conv(x)))
        return out


class SuperResolver(nn.Module):
    """A head, residual blocks under a long skip, upscalers, a tail; what EDSR and SRResNet have in common.

    :param scale: 2 or 4
    :param channels: of images
    :param blocks: residual ones
    :param width: channels between
    :param kernel: of head and tail
    :param batch_norm: SRResNet's batch norms and PReLUs
    :param mean: subtracted from images and added to outputs, per channel
    """

    def __init__(
        self, scale: int, channels: int, blocks: int, width: int, kernel: int, batch_norm: bool, mean: tuple[float, ...]
    ) -> None:
        super().__init__()
        self.head = nn.Conv2d(channels, width, kernel, padding=kernel // 2)
        self.head_act: nn.Module = nn.PReLU() if batch_norm else nn.Identity()
        self.body = nn.ModuleList(ResidualBlock(width, batch_norm) for _ in range(blocks))
        self.body_end = nn.Sequential(nn.Conv2d(width, width, 3, padding=1))
        if batch_norm:
            self.body_end.append(nn.BatchNorm2d(width))
        self.upscale = nn.ModuleList(Upscaler(width, batch_norm) for _ in range(scale.bit_length() - 1))
        self.tail = nn.Conv2d(width, channels, kernel, padding=kernel // 2)
        self.mean = torch.tensor(mean if channels == len(mean) else [sum(mean) / len(mean)] * channels)

    def forward(self, images: Tensor) -> Tensor:
        """From small to large images, (N, channels, H, W) to (N, channels, scale H, scale W), in [0, 1]."""
        return _restored(self.stages(), images)

    def stages(self) -> list[Stage]:
        """Head, residual blocks, end of the body, upscalers, tail."""
        return [
            _stage("head", "head", {"images"}, partial(_run_head, self)),
            *(
                _stage(f"body.{i}", f"body.{i}", {"x"}, partial(_chain, [block], "x"))
                for i, block in enumerate(self.body)
            ),
            _stage("body_end", "body_end", {"x", "skip"}, partial(_run_body_end, self)),
            *(
                _stage(f"upscale.{i}", "tail", {"x"}, partial(_chain, [upscaler], "x"))
                for i, upscaler in enumerate(self.upscale)
            ),
            _stage("tail", "tail", {"x"}, partial(_run_tail, self)),
        ]


def edsr(scale: int = 2, channels: int = 3, blocks: int = 16, width: int = 64) -> SuperResolver:
    """EDSR-baseline (Lim et al. 2017, arXiv 1707.02921, section 3.2)."""
    return SuperResolver(scale, channels, blocks, width, 3, False, RGB_MEAN)


def srresnet(scale: int = 4, channels: int = 3, blocks: int = 16, width: int = 64) -> SuperResolver:
    """SRResNet (Ledig et al. 2017, arXiv 1609.04802, figure 4)."""
    return SuperResolver(scale, channels, blocks, width, 9, True, (0.0,) * channels)


def _restored(stages: list[Stage], images: Tensor) -> Tensor:
    restored: Tensor = run_stages(stages, {"images": images})["restored"]
    return restored


def _stage(name: str, block: str, reads: set[str], run: Callable[[State], State]) -> Stage:
    return Stage(name, block, frozenset(reads), run)


def _chain(modules: list[nn.Module], source: str, state: State) -> State:
    x = state[source]
    for module in modules:
        x = module(x)
    return {**state, "x": x}


def _run_first(modules: list[nn.Module], state: State) -> State:
    return _chain(modules, "images", {**state, "images": as_read(modules[0], state["images"])})


def _subtract_noise(state: State) -> State:
    return {"restored": state["images"] - state["x"]}


def _per_channel(mean: Tensor, like: Tensor) -> Tensor:
    return mean.to(like)[:, None, None]


def _run_head(model: SuperResolver, state: State) -> State:
    images = state["images"]
    x = model.head_act(model.head(images - _per_channel(model.mean, images)))
    return {"x": x, "skip": x}


def _run_body_end(model: SuperResolver, state: State) -> State:
    return {"x": model.body_end(state["x"]) + state["skip"]}


def _run_tail(model: SuperResolver, state: State) -> State:
    x = model.tail(state["x"])
    return {"restored": x + _per_channel(model.mean, x)}
