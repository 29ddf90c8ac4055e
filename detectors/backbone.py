"""torchvision's backbones and feature pyramids, cut into stages."""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

from torch import nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.ops.feature_pyramid_network import LastLevelP6P7
from torchvision.ops.misc import FrozenBatchNorm2d

from detectors.stages import Stage, State, without

BLOCKS = (3, 4, 6, 3)  # bottlenecks per ResNet-50 stage
PLANES = (64, 128, 256, 512)  # inner channels per stage at full width
DEEPEST = 5  # the pyramid's level that is made of the backbone's last maps


def resnet50(width: float = 1.0) -> ResNet:
    """torchvision's ResNet-50 with every channel count multiplied by ``width``; batch norm is trainable."""
    net = ResNet(Bottleneck, list(BLOCKS) if width == 1 else [1, 1, 1, 1])
    if width == 1:
        return net
    net.inplanes = round(PLANES[0] * width)
    net.conv1 = nn.Conv2d(3, net.inplanes, kernel_size=7, stride=2, padding=3, bias=False)
    net.bn1 = nn.BatchNorm2d(net.inplanes)
    for i, (planes, blocks) in enumerate(zip(PLANES, BLOCKS, strict=True)):
        stage = net._make_layer(Bottleneck, round(planes * width), blocks, stride=1 if i == 0 else 2)
        setattr(net, f"layer{i + 1}", stage)
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return net


def fold_batch_norm(model: nn.Module) -> nn.Module:
    """Fold every batch norm into the convolution before it, in place; outputs in eval mode stay.

    :param model: whose norms are the next siblings of their convolutions, as in torchvision's networks
    :return: ``model``
    """
    model.eval()
    for module in list(model.modules()):
        children = list(module.named_children())
        for (conv_name, conv), (norm_name, norm) in pairwise(children):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d | FrozenBatchNorm2d):
                if isinstance(norm, FrozenBatchNorm2d):
                    norm.requires_grad_(False)
                setattr(module, conv_name, fuse_conv_bn_eval(conv, norm))
                setattr(module, norm_name, nn.Identity())
    return model


def backbone_stages(backbone: BackboneWithFPN) -> list[Stage]:
    """A backbone with a feature pyramid, from ``images`` to ``features``, the list of all pyramid maps, finest first.

    What else stands in the state goes through.
    """
    body, fpn = backbone.body, backbone.fpn
    first = DEEPEST + 1 - len(fpn.inner_blocks)
    kept = {child: f"c{first + place}" for place, child in enumerate(body.return_layers)}
    stages = _resnet_stages(body, kept) if "layer1" in body else _chain_stages(body, kept)
    extra = fpn.extra_blocks
    reads_body = isinstance(extra, LastLevelP6P7) and not extra.use_P5
    for level in reversed(range(first, DEEPEST + 1)):
        inner, outer = fpn.inner_blocks[level - first], fpn.layer_blocks[level - first]
        reads = frozenset({f"c{level}"} if level == DEEPEST else {f"c{level}", "top_down", "features"})
        used_up = () if level == DEEPEST and reads_body else (f"c{level}",)
        run = partial(_run_pyramid, inner, outer, level, first, used_up)
        stages.append(Stage(f"fpn.p{level}", f"fpn.p{level}", reads, run))
    name = "fpn.p6p7" if isinstance(extra, LastLevelP6P7) else "fpn.pool"
    deepest = f"c{DEEPEST}" if reads_body else None
    reads = frozenset({"features", *([deepest] if deepest else [])})
    return [*stages, Stage(name, name, reads, partial(_run_extra_levels, extra, deepest))]


def _resnet_stages(body: nn.ModuleDict, kept: dict[str, str]) -> list[Stage]:
    """The stem and a stage per bottleneck.

    :param kept: names in the state of the outputs of some children
    """
    stages = [Stage("stem", "stem", frozenset({"images"}), partial(_run_stem, body))]
    for child in (name for name in body if name.startswith("layer")):
        bottlenecks = list(body[child].children())
        for i, bottleneck in enumerate(bottlenecks):
            last = i == len(bottlenecks) - 1
            run = partial(run_module, bottleneck, "x", kept.get(child) if last else None)
            stages.append(Stage(f"{child}.{i}", f"{child}.{i}", frozenset({"x"}), run))
    return stages


def _chain_stages(body: nn.ModuleDict, kept: dict[str, str]) -> list[Stage]:
    """A stage per child, as MobileNet's blocks follow each other; ``kept`` as above."""
    stages = []
    for i, (child, module) in enumerate(body.items()):
        source = "x" if i else "images"
        run = partial(run_module, module, source, kept.get(child))
        stages.append(Stage(f"features.{child}", f"features.{child}", frozenset({source}), run))
    return stages


def run_module(module: nn.Module, source: str, kept: str | None, state: State) -> State:
    """Apply a module; its output becomes ``x``.

    :param source: the key of its input, which is dropped
    :param kept: a second name under which the output stays
    """
    x = module(state[source])
    return {**without(state, source), "x": x, **({kept: x} if kept else {})}


def _run_stem(body: nn.ModuleDict, state: State) -> State:
    x = body["relu"](body["bn1"](body["conv1"](state["images"])))
    return {**without(state, "images"), "x": body["maxpool"](x)}


def _run_pyramid(
    inner: nn.Module, outer: nn.Module, level: int, first: int, used_up: Sequence[str], state: State
) -> State:
    lateral = inner(state[f"c{level}"])
    if level < DEEPEST:
        lateral = lateral + F.interpolate(state["top_down"], size=lateral.shape[-2:], mode="nearest")
    kept = without(state, "x", "top_down", *used_up)
    features = [outer(lateral), *state.get("features", [])]
    return {**kept, "features": features, **({"top_down": lateral} if level > first else {})}


def _run_extra_levels(extra: nn.Module, deepest: str | None, state: State) -> State:
    """P6 and P7, or P6 by pooling, of the coarsest pyramid map or of the backbone's."""
    maps = list(state["features"])
    features, _ = extra(maps, [state[deepest]] if deepest else list(maps), [])
    return {**without(state, *([deepest] if deepest else [])), "features": features}
