"""Whole channels: which of them a layer looks at, which tensors share them, and a network without those nobody needs.

With the sparsity pattern "channels" a layer's choice drops a share of its *input* channels, as AMC does (He et al.
2018, arXiv 1802.03494). What a channel carries does not matter to a layer that has dropped it, so that layers stay free
to choose: a channel can be taken out of the network where every layer that reads it has dropped it. All readers of one
tensor rank its channels alike, so that the fewest channels that one of them drops are dropped by all. The tensors that
residual sums and shared heads tie together are found by torch-pruning's dependency graph (Fang et al. 2023, arXiv
2301.12900).
"""

import copy
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hsq_env.layers import CompressedConv2d, CompressedLayer, CompressedLinear
from hsq_env.narrowing import take_out
from hsq_env.raw_outputs import RawOutputs, Stages
from hsq_env.states import run
from hsq_env.task import Task

NORMS = (nn.GroupNorm, nn.BatchNorm2d)
LAYERS = (nn.Conv2d, nn.Linear, CompressedConv2d, CompressedLinear)


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that can only be taken out of several layers together.

    :param producers: layers whose output channels they are
    :param norms: modules between that have weights for each channel
    :param consumers: layers whose input channels they are
    :param unit: neighbouring channels that can only go together: a group norm's, which shares their mean
    """

    producers: tuple[str, ...]
    norms: tuple[str, ...]
    consumers: tuple[str, ...]
    channels: int
    unit: int


def channel_groups(model: nn.Module, stages: Stages, images: Tensor) -> tuple[ChannelGroup, ...]:
    """The groups whose channels can be taken out without changing the tensors that the last stage puts out.

    The dependency graph proposes them; what it cannot know is tried out. Left out are groups that reach an output, that
    pass through an operation which mixes channels or has numbers of its own for each, or that hold other layers than
    plain convolutions, linear layers, group and batch norms. Lists that the last stage puts out do not count: ONNX
    files hold tensors alone, and of a detector's feature maps only the sizes are looked at.

    :param model: in evaluation mode; it is left as it is
    :param stages: makes the forward pass of a model
    :param images: (N, C, H, W), any on which the network runs; the first is enough
    """
    import torch_pruning

    plain = _without_choices(model)
    names = {module: name for name, module in plain.named_modules()}
    for parameter in plain.parameters():
        parameter.requires_grad_(True)  # the graph is read off the gradients
    graph = torch_pruning.DependencyGraph()
    example = images[:1].cpu()
    try:
        with torch.enable_grad():
            graph.build_dependency(RawOutputs(plain, stages), example_inputs=(example,), verbose=False)
    except Exception as error:  # networks that it cannot follow: nothing can be taken out of them
        warnings.warn(f"No channels can be taken out of this network ({type(error).__name__}: {error}).", stacklevel=2)
        return ()
    found: list[ChannelGroup] = []
    seen: set[str] = set()
    for layer in [m for m in plain.modules() if type(m) in LAYERS]:
        if names[layer] in seen or layer not in graph.module2node:
            continue
        root = _out_channels(torch_pruning, layer)
        members = list(graph.get_pruning_group(layer, root, idxs=list(range(len(_weight(layer))))))
        group = _group(members, names, graph.is_out_channel_pruning_fn, torch_pruning.ops._ElementWiseOp)
        if group is not None:
            found.append(group)
            seen.update(group.producers)
    return _tried(plain.requires_grad_(False), stages, example, found)


def shared_inputs(groups: Sequence[ChannelGroup]) -> frozenset[str]:
    """Layers whose input channels can be taken out of the network at all."""
    return frozenset(name for group in groups for name in group.consumers)


def _out_channels(library: Any, layer: nn.Module) -> Callable[..., Any]:
    convolution: Callable[..., Any] = library.prune_conv_out_channels
    linear: Callable[..., Any] = library.prune_linear_out_channels
    return convolution if isinstance(layer, nn.Conv2d) else linear


def _weight(layer: nn.Module) -> Tensor:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight


def _group(
    members: Sequence[Any],
    names: dict[nn.Module, str],
    is_output: Callable[[Any], bool],
    elementwise: type[nn.Module],
) -> ChannelGroup | None:
    """A group of the dependency graph; None if its channels must stay."""
    producers: dict[str, None] = {}
    consumers: dict[str, None] = {}
    norms: dict[str, None] = {}
    channels, unit = len(_weight(members[0][0].target.module)), 1
    for dependency, indices in members:
        module = dependency.target.module
        if isinstance(module, elementwise):
            continue
        if list(indices) != list(range(channels)) or getattr(module, "groups", 1) != 1:
            return None
        if type(module) in LAYERS:
            output = is_output(dependency.handler)
            if _weight(module).shape[0 if output else 1] != channels:
                return None
            (producers if output else consumers)[names[module]] = None
        elif isinstance(module, NORMS):
            if (module.num_channels if isinstance(module, nn.GroupNorm) else module.num_features) != channels:
                return None
            norms[names[module]] = None
            unit = math.lcm(unit, channels // module.num_groups if isinstance(module, nn.GroupNorm) else 1)
        else:
            return None
    return ChannelGroup(tuple(producers), tuple(norms), tuple(consumers), channels, unit) if consumers else None


def _tried(
    model: nn.Module, stages: Stages, images: Tensor, groups: Sequence[ChannelGroup]
) -> tuple[ChannelGroup, ...]:
    """Those of some groups that can really be taken out: all at once if that works, else one by one."""
    if not groups or _works(model, stages, images, groups):
        return tuple(groups)
    return tuple(group for group in groups if _works(model, stages, images, [group]))


@torch.no_grad()
def _works(model: nn.Module, stages: Stages, images: Tensor, groups: Sequence[ChannelGroup]) -> bool:
    """Whether nothing changes when channels that nobody reads carry something else, or are not there at all.

    Of every group the consumers drop every other unit, at least one.
    """
    units = [torch.arange(group.channels).reshape(-1, group.unit) for group in groups]
    dropped, kept = [own[::2].flatten() for own in units], [own[1::2].flatten() for own in units]
    blind = copy.deepcopy(model)
    modules: dict[str, Any] = dict(blind.named_modules())
    for group, unread in zip(groups, dropped, strict=True):
        for name in group.consumers:
            modules[name].weight[:, unread] = 0.0
    disturbed = copy.deepcopy(blind)
    modules = dict(disturbed.named_modules())
    for group, unread in zip(groups, dropped, strict=True):
        for name in (*group.producers, *group.norms):
            own = modules[name]
            for parameter in (own.weight, own.bias):
                if parameter is not None:
                    parameter[unread] = _disturbed(parameter[unread])
    smaller = copy.deepcopy(blind)
    try:
        for group, left in zip(groups, kept, strict=True):
            if len(left):
                take_out(smaller, group, left)
        expected, *found = (RawOutputs(m, stages)(images) for m in (blind, disturbed, smaller))
    except (RuntimeError, ValueError, IndexError):  # sizes that do not go together any more
        return False
    return all(
        one.shape == other.shape and torch.allclose(one, other, rtol=1e-3, atol=1e-4 * float(one.abs().max()))
        for outputs in found
        for one, other in zip(expected, outputs, strict=True)
    )


def _disturbed(values: Tensor) -> Tensor:
    """Other weights, biases or norms of some channels, (channels, ...), as large as they are: nothing overflows.

    What is zero stays so, channels that are zero altogether apart: what nobody reads must not add up layer by layer.
    """
    empty = ~values.flatten(1).any(dim=1) if values.dim() > 1 else torch.ones_like(values, dtype=torch.bool)
    return torch.where(empty.reshape(-1, *[1] * (values.dim() - 1)), 1.5, 0.0) - 2.0 * values


def _without_choices(model: nn.Module) -> nn.Module:
    """A copy on the CPU that computes with its latent weights."""
    plain = copy.deepcopy(model).cpu().eval()
    for module in plain.modules():
        if isinstance(module, CompressedLayer):
            module.forget()
    return plain


def channel_orders(task: Task, names: Sequence[str], groups: Sequence[ChannelGroup]) -> tuple[tuple[int, ...], ...]:
    """Input channels of each layer in the order in which they are dropped, the least important first.

    A channel's importance to a layer is its share of the energy that the layer's products have on the calibration
    images, ``sum(weight**2) * mean(input**2)``. Of a group it is the sum over its consumers, and channels of a unit
    go together.

    :param names: of the layers
    :param groups: of ``channel_groups``
    """
    shares = _energy_shares(task, names)
    orders = {name: tuple(share.argsort(stable=True).tolist()) for name, share in shares.items()}
    for group in groups:
        together = torch.stack([shares[name] for name in group.consumers if name in shares]).sum(dim=0)
        units = together.reshape(-1, group.unit).sum(dim=1).argsort(stable=True)
        order = (units[:, None] * group.unit + torch.arange(group.unit)).flatten()
        orders.update(dict.fromkeys(group.consumers, tuple(order.tolist())))
    return tuple(orders[name] for name in names)


@torch.no_grad()
def _energy_shares(task: Task, names: Sequence[str]) -> dict[str, Tensor]:
    """Of every input channel of every layer, float64, summing to 1 per layer."""
    modules = dict(task.teacher.named_modules())
    energies: dict[str, Tensor] = {}

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0].double()
            axes = (0, 2, 3) if isinstance(module, nn.Conv2d) else tuple(range(x.dim() - 1))
            energies[name] = energies.get(name, 0) + x.square().mean(dim=axes).cpu()

        return note

    handles = [modules[name].register_forward_pre_hook(hook(name)) for name in names]
    try:
        stages = task.stages(task.teacher)
        for batch in task.calibration():
            run(stages, {"images": batch.images})
    finally:
        for handle in handles:
            handle.remove()
    shares = {}
    for name in names:
        weight = modules[name].weight.detach().double().cpu()
        squares = weight.square().flatten(2).sum(dim=2) if weight.dim() > 2 else weight.square()
        inputs = energies[name].reshape(-1, weight.shape[1]).sum(dim=0)  # a grouped convolution reads more than that
        energy = squares.sum(dim=0) * inputs
        shares[name] = energy / energy.sum().clamp_min(1e-30)
    return shares


def _dropped(module: nn.Module) -> Tensor:
    """Which input channels a module does not look at, (channels,) or (1,), bool."""
    if not isinstance(module, CompressedLayer) or module.mask is None:
        return torch.zeros(1, dtype=torch.bool)
    return ~module.mask.transpose(0, 1).flatten(1).any(dim=1).cpu()


def unread_channels(model: nn.Module, group: ChannelGroup) -> list[int]:
    """Channels of a group that every consumer has dropped, in whole units."""
    modules = dict(model.named_modules())
    dropped = torch.ones(group.channels, dtype=torch.bool)
    for name in group.consumers:
        dropped &= _dropped(modules[name])
    whole = dropped.reshape(-1, group.unit).all(dim=1, keepdim=True).expand(-1, group.unit).flatten()
    return [int(i) for i in whole.nonzero()]


def shrunk(model: nn.Module, stages: Stages, images: Tensor) -> nn.Module:
    """A copy without the channels that nobody reads: the same outputs, up to the order of sums, from fewer products.

    :param model: with layers that carry choices
    :param stages: makes the forward pass of a model
    :param images: (N, C, H, W), any on which the network runs
    """
    small = copy.deepcopy(model)
    if not any(bool(_dropped(module).any()) for module in small.modules()):
        return small
    for group in channel_groups(model, stages, images):
        unread = set(unread_channels(model, group))
        if not unread:
            continue
        take_out(small, group, torch.tensor([i for i in range(group.channels) if i not in unread]))
    for module in small.modules():
        if isinstance(module, CompressedLayer) and module.mask is not None and bool(module.mask.all()):
            module.mask = None
    return small


def dead_outputs(model: nn.Module, groups: Sequence[ChannelGroup]) -> dict[str, list[int]]:
    """Output channels that nobody reads, by layer."""
    return {name: unread for group in groups if (unread := unread_channels(model, group)) for name in group.producers}
