"""The student: a copy of the teacher whose layers carry choices."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from detectors.progress import each
from detectors.stages import run_stages
from hsq_env.channels import ChannelGroup, channel_groups, channel_orders
from hsq_env.choices import Choice, Plan, check_activation_bits, input_bits
from hsq_env.layer_info import LayerInfo
from hsq_env.layers import CompressedLayer, PackedLayer, Variant, make_compressible, pack_mask, unpack_mask
from hsq_env.quantizers import ActivationRange, activation_range
from hsq_env.task import Batch, Stage, Task

LONG = 50  # batches of an evaluation that show how far it is
DEFAULT_ACTIVATION_BITS = 8  # by default, whatever the weights have


@dataclass(frozen=True)
class PackedVariant:
    """A ``Variant`` in an eighth of its memory."""

    mask: Tensor | None
    scale: Tensor

    @classmethod
    def of(cls, variant: Variant) -> "PackedVariant":
        """Pack."""
        return cls(pack_mask(variant.mask), variant.scale)

    def unpacked(self, weight: Tensor) -> Variant:
        """For a layer's weight."""
        return Variant(unpack_mask(self.mask, weight), self.scale)


@dataclass(frozen=True)
class PackedBlock:
    """A finished block: what its layers and its other modules compute with."""

    layers: list[PackedLayer]
    rest: list[Tensor]

    @property
    def nbytes(self) -> int:
        """Bytes that it takes in memory."""
        return sum(layer.nbytes for layer in self.layers) + sum(tensor.nbytes for tensor in self.rest)


class Student:
    """A copy of the teacher that takes choices one layer at a time.

    :param task: gives the teacher and its stages
    :param infos: of ``trace_layers``
    :param activation_bits: of every chosen layer's input but the first's, see ``hsq_env.choices.input_bits``; None
        leaves them in float32, "match" takes the weights' bits
    :param pattern: of sparsity, "unstructured", "n:m" or "channels" (whole input channels, see ``hsq_env.channels``)
    :param keep_variants: make the variants of untouched layers once
    :raises InputError: for ``activation_bits`` that no file can hold
    """

    def __init__(
        self,
        task: Task,
        infos: Sequence[LayerInfo],
        activation_bits: int | str | None = DEFAULT_ACTIVATION_BITS,
        pattern: str = "unstructured",
        keep_variants: bool = False,
    ) -> None:
        check_activation_bits(activation_bits)
        self.task, self.infos = task, tuple(infos)
        self.activation_bits, self.pattern = activation_bits, pattern
        self.keep_variants = keep_variants
        self.model = make_compressible(copy.deepcopy(task.teacher))
        self.channel_groups: tuple[ChannelGroup, ...] = ()
        if pattern == "channels":
            self._rank_channels()
        self._initial = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        self._variants: dict[tuple[int, Choice], PackedVariant] = {}
        self._touched: set[nn.Module] = set()  # modules that are not as the teacher has them any more
        self._bind()

    def _rank_channels(self) -> None:
        """Which input channels each layer drops first."""
        task, names = self.task, [info.name for info in self.infos]
        self.channel_groups = channel_groups(task.teacher, task.stages, task.calibration()[0].images)
        for name, order in zip(names, channel_orders(task, names, self.channel_groups), strict=True):
            layer = self.model.get_submodule(name)
            assert isinstance(layer, CompressedLayer)
            layer.channel_order = order

    def _bind(self) -> None:
        modules = dict(self.model.named_modules())
        self.layers: list[CompressedLayer] = [modules[info.name] for info in self.infos]
        self.stages: Sequence[Stage] = self.task.stages(self.model)
        self._block_stages = _stages_by_block(self.stages)
        names = [info.block for info in self.infos]
        self._block_layers = {name: range(names.index(name), names.index(name) + names.count(name)) for name in names}
        self._block_modules = {info.block: self._modules_of_block(info.block) for info in self.infos}

    def copy(self) -> "Student":
        """An independent student with the same weights and choices; what nothing changes is shared."""
        other = copy.copy(self)
        other.model = copy.deepcopy(self.model)
        names = {module: name for name, module in self.model.named_modules()}
        other._touched = {other.model.get_submodule(names[module]) for module in self._touched}
        other._bind()
        return other

    def reset(self) -> None:
        """Back to the teacher's weights, no layer chosen."""
        self.model.load_state_dict(self._initial)
        self._touched.clear()
        for layer in self.layers:
            layer.forget()

    @torch.no_grad()
    def reset_modules(self, modules: Sequence[nn.Module]) -> None:
        """The same for some modules."""
        names = {module: name for name, module in self.model.named_modules()}
        for module in modules:
            for key, parameter in module.named_parameters(recurse=False):
                parameter.copy_(self._initial[f"{names[module]}.{key}"])
            if isinstance(module, CompressedLayer):
                module.forget()
        self._touched -= set(modules)

    def touch(self, modules: Sequence[nn.Module]) -> None:
        """Say that modules are about to be trained."""
        self._touched |= set(modules)

    def compress(self, index: int, choice: Choice) -> None:
        """Prune and quantize one layer from its present latent weights."""
        self.layers[index].compress(
            choice, self.activation(index, choice), self.pattern, self._kept_variant(index, choice)
        )

    def _kept_variant(self, index: int, choice: Choice) -> Variant | None:
        layer = self.layers[index]
        if not self.keep_variants or layer in self._touched:
            return None
        key = (index, choice)
        if key not in self._variants:
            self._variants[key] = PackedVariant.of(layer.variant(choice, self.pattern))
        return self._variants[key].unpacked(layer.weight)

    def pack_block(self, index: int) -> "PackedBlock":
        """The block of layer ``index``, all of whose layers have choices, as the file would hold it."""
        modules = self.modules_of("block", index)
        layers = [m.pack() for m in modules if isinstance(m, CompressedLayer)]
        rest = [m for m in modules if not isinstance(m, CompressedLayer)]
        return PackedBlock(layers, [p.detach().clone() for m in rest for p in m.parameters(recurse=False)])

    @torch.no_grad()
    def unpack_block(self, index: int, packed: "PackedBlock") -> None:
        """The inverse of ``pack_block``: outputs are the same bit for bit; latent weights are the rounded ones."""
        modules = self.modules_of("block", index)
        self.touch(modules)
        layers = [m for m in modules if isinstance(m, CompressedLayer)]
        for layer, kept in zip(layers, packed.layers, strict=True):
            layer.unpack(kept)
        rest = [p for m in modules if not isinstance(m, CompressedLayer) for p in m.parameters(recurse=False)]
        for parameter, value in zip(rest, packed.rest, strict=True):
            parameter.copy_(value)

    def layers_of(self, block: str) -> range:
        """Indices of the layers of a block."""
        return self._block_layers[block]

    def activation(self, index: int, choice: Choice) -> tuple[ActivationRange, ...]:
        """The input ranges of a layer under a choice, one per call in a forward pass; none for float32 activations."""
        bits = input_bits(index, choice, self.activation_bits)
        if bits is None:
            return ()
        return tuple(activation_range(low, high, bits) for low, high in self.infos[index].input_ranges)

    def apply(self, plan: Plan) -> None:
        """Compress every layer of a plan from the teacher's weights, without fine-tuning."""
        self.reset()
        for index, choice in enumerate(plan.choices):
            self.compress(index, choice)

    def plan(self) -> Plan:
        """The choices made; every layer must have one."""
        choices = [layer.choice for layer in self.layers]
        return Plan(tuple(info.name for info in self.infos), tuple(c for c in choices if c is not None))

    def block(self, name: str) -> range:
        """Indices of the stages of a block."""
        return self._block_stages[name]

    def modules_of(self, scope: str, index: int) -> list[nn.Module]:
        """The modules whose parameters fine-tuning layer ``index`` changes.

        :param scope: "layer", "block" or "all"
        """
        if scope == "layer":
            return [self.layers[index]]
        if scope == "all":
            return [m for m in self.model.modules() if any(True for _ in m.parameters(recurse=False))]
        return self._block_modules[self.infos[index].block]

    def _modules_of_block(self, block: str) -> list[nn.Module]:
        """The layers of a block and every module with parameters that stands between the first and the last of them."""
        names = [info.name for info in self.infos if info.block == block]
        owners = [(n, m) for n, m in self.model.named_modules() if any(True for _ in m.parameters(recurse=False))]
        prefixes = {name.rsplit(".", 1)[0] for name in names}
        wanted = set(names)
        known = {info.name for info in self.infos}
        return [m for n, m in owners if n in wanted or (n not in known and n.rsplit(".", 1)[0] in prefixes)]

    def outputs(self, batch: Batch) -> dict[str, Any]:
        """The last stage's state for a batch, from the images on."""
        return run_stages(self.stages, {"images": batch.images})

    def __getstate__(self) -> dict[str, Any]:
        derived = ("stages", "layers", "_block_stages", "_block_layers", "_block_modules", "_variants")
        return {key: value for key, value in self.__dict__.items() if key not in derived}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._variants = {}
        self._bind()


def _stages_by_block(stages: Sequence[Stage]) -> dict[str, range]:
    blocks: dict[str, range] = {}
    for i, stage in enumerate(stages):
        blocks[stage.block] = range(blocks[stage.block].start if stage.block in blocks else i, i + 1)
    return blocks


def evaluate(task: Task, stages: Sequence[Stage], split: str) -> float:
    """The task's metric of a model given by its stages, every forward pass from the images."""
    return task.metric(predictions_of(task, stages, split), split)


def predictions_of(task: Task, stages: Sequence[Stage], split: str) -> list[Any]:
    """What the metric needs to know, batch by batch."""
    batches, predictions = task.evaluation(split), []
    told = each(batches, f"{split} images, batch") if len(batches) >= LONG else batches
    with torch.no_grad():
        for batch in told:
            state: dict[str, Any] = {"images": batch.images}
            for stage in stages:
                state = stage.run(state)
            predictions.append(task.predictions(state, batch))
    return predictions
