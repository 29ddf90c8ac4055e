"""The same ONNX graph in fewer bytes: constants once, what can be computed beforehand computed, short names."""

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

FOLDED = {"Cast", "Concat", "Gather", "Reshape", "Squeeze", "Unsqueeze"}  # cheap, and their results are no larger
LARGEST_FOLDED = 65_536  # elements
RANDOM = {"Bernoulli", "Dropout", "Multinomial", "RandomNormal", "RandomUniform"}
RANDOM |= {"RandomNormalLike", "RandomUniformLike"}
DIGITS = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


def tidied(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy that computes the same, from the same inputs to outputs of the same names.

    :param model: without subgraphs; constants are tensors
    """
    tidy = _Tidy(model)
    tidy.replace()
    tidy.drop_unused()
    tidy.rename()
    return tidy.model


class _Tidy:
    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = onnx.ModelProto()
        self.model.CopyFrom(model)
        self.graph = self.model.graph
        self.inputs = {v.name for v in self.graph.input}
        self.kept = self.inputs | {v.name for v in self.graph.output}
        self.tensors: dict[str, TensorProto] = {}
        self._by_content: dict[bytes, str] = {}
        self._same: dict[str, str] = {}  # names that mean what another one means
        for tensor in self.graph.initializer:
            self._add(tensor)

    def _add(self, tensor: TensorProto) -> None:
        """Keep a tensor, unless there is one like it."""
        content = TensorProto()
        content.CopyFrom(tensor)
        content.name = ""
        key = content.SerializeToString()
        first = tensor.name if tensor.name in self.kept else self._by_content.setdefault(key, tensor.name)
        if first == tensor.name:
            self.tensors[tensor.name] = tensor
        else:
            self._same[tensor.name] = first

    def replace(self) -> None:
        """Take out constants, nodes of constants, and nodes that do what another one does."""
        nodes: list[NodeProto] = []
        done: dict[tuple[bytes, ...], list[str]] = {}
        for node in self.graph.node:
            node.input[:] = [self._same.get(name, name) for name in node.input]
            if node.op_type == "Constant" and [a.name for a in node.attribute] == ["value"]:
                self._constant(node)
                continue
            if node.op_type == "Identity" and not self.kept & set(node.output):
                self._same[node.output[0]] = node.input[0]
                continue
            if self._foldable(node):
                self._fold(node)
                continue
            key = (
                node.domain.encode(),
                node.op_type.encode(),
                bytes(bool(name) for name in node.output),
                *(name.encode() for name in node.input),
                *sorted(attribute.SerializeToString() for attribute in node.attribute),
            )
            if key in done and not self.kept & set(node.output) and node.op_type not in RANDOM:
                self._same |= {own: first for own, first in zip(node.output, done[key], strict=True) if own}
                continue
            done.setdefault(key, list(node.output))
            nodes.append(node)
        del self.graph.node[:]
        self.graph.node.extend(nodes)

    def _constant(self, node: NodeProto) -> None:
        tensor = TensorProto()
        tensor.CopyFrom(next(a.t for a in node.attribute if a.name == "value"))
        tensor.name = node.output[0]
        self._add(tensor)

    def _foldable(self, node: NodeProto) -> bool:
        """Whether all that a node needs is known; numbers that are stored in few bits stay so."""
        given = [self.tensors.get(name) for name in node.input]
        return (
            node.op_type in FOLDED
            and not self.kept & set(node.output)
            and not self.inputs & set(node.input)
            and all(t is not None and t.data_type in (TensorProto.FLOAT, TensorProto.INT64) for t in given)
            and sum(int(np.prod(t.dims)) for t in given if t is not None) <= LARGEST_FOLDED
        )

    def _fold(self, node: NodeProto) -> None:
        opsets = {opset.domain: opset.version for opset in self.model.opset_import}
        evaluator = ReferenceEvaluator(node, opsets=opsets)
        found = evaluator.run(None, {name: numpy_helper.to_array(self.tensors[name]) for name in node.input})
        for name, value in zip(node.output, found, strict=True):
            self._add(numpy_helper.from_array(np.asarray(value), name))

    def drop_unused(self) -> None:
        """Take out nodes and tensors that nothing reads."""
        needed, nodes = {v.name for v in self.graph.output}, []
        for node in reversed(self.graph.node):
            if needed & set(node.output):
                nodes.append(node)
                needed |= set(node.input)
        del self.graph.node[:], self.graph.initializer[:]
        self.graph.node.extend(reversed(nodes))
        self.graph.initializer.extend(tensor for name, tensor in self.tensors.items() if name in needed)

    def rename(self) -> None:
        """Short names for everything but inputs and outputs."""
        short, names = _short_names(self.kept), {name: name for name in ("", *self.kept)}

        def renamed(name: str) -> str:
            if name not in names:
                names[name] = next(short)
            return names[name]

        for node in self.graph.node:
            node.name = node.doc_string = ""
            node.input[:] = [renamed(name) for name in node.input]
            node.output[:] = [renamed(name) for name in node.output]
        for tensor in self.graph.initializer:
            tensor.name = renamed(tensor.name)
        del self.graph.value_info[:]


def _short_names(taken: set[str]) -> Iterator[str]:
    """a, b, ..., without those that are taken."""
    number = 0
    while True:
        number += 1
        left, name = number, ""
        while left:
            left, digit = divmod(left, len(DIGITS))
            name = DIGITS[digit] + name
        if name not in taken:
            yield name
