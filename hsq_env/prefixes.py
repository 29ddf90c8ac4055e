"""Visited prefixes: what came of choices that were made before in the same order.

A trie from the first layer on. Every node keeps what its step's measurement gave, some bytes; the last node of a block
may also keep the block's weights as the file would hold them, so that a student can be put together again without
repeating the fine-tuning. Both count against one budget of bytes: the least recently used weights go first, then the
least recently used nodes, which are leaves, since whoever visits a node has visited its ancestors.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from hsq_env.choices import Choice

NODE_BYTES = 640  # of a node with its entries in dictionaries, as tracemalloc sees them


@dataclass(frozen=True)
class Decision:
    """What a step depends on beside what came before it.

    :param alpha: share of the task loss in the fine-tuning
    """

    choice: Choice
    alpha: float


@dataclass(frozen=True)
class Outcome:
    """What a step's measurement gave.

    :param accuracy: NaN where the student's outputs are no numbers
    :param finite: whether the fine-tuning stayed finite
    :param divergence: the distillation loss on the search images; NaN likewise
    """

    accuracy: float
    finite: bool
    divergence: float


class Node:
    """The student after some decisions."""

    __slots__ = ("children", "decision", "depth", "outcome", "parent", "weights")

    def __init__(self, parent: "Node | None", decision: Decision | None) -> None:
        self.parent, self.decision = parent, decision
        self.depth: int = 0 if parent is None else parent.depth + 1
        self.children: dict[Decision, Node] = {}
        self.outcome: Outcome | None = None
        self.weights: Any = None  # of the block that this decision ends; has nbytes

    def path(self) -> list["Node"]:
        """The nodes from the first decision to this one."""
        nodes: list[Node] = []
        node = self
        while node.parent is not None:
            nodes.append(node)
            node = node.parent
        return nodes[::-1]

    def decisions(self) -> list[Decision]:
        """The decisions that lead here."""
        return [node.decision for node in self.path() if node.decision is not None]


Row = tuple[int, Decision, Outcome | None]  # of a table: number of the parent's row (-1: the root), what came of it


class PrefixTable:
    """The trie.

    :param limit: bytes
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.bytes = limit, 0
        self.lookups = self.hits = 0
        self.root = Node(None, None)
        self._nodes: OrderedDict[int, Node] = OrderedDict()  # by id, the least recently used first
        self._heavy: OrderedDict[int, Node] = OrderedDict()  # those of them that hold weights

    def __len__(self) -> int:
        return len(self._nodes)

    def find(self, parent: Node, decision: Decision) -> Node | None:
        """The node of a decision whose outcome is known."""
        self.lookups += 1
        node = parent.children.get(decision)
        if node is None or node.outcome is None:
            return None
        self.hits += 1
        self._touch(node)
        return node

    def add(self, parent: Node, decision: Decision, outcome: Outcome | None) -> Node:
        """The node of a decision, with its outcome where there is one."""
        node = parent.children.get(decision)
        if node is None:
            node = parent.children[decision] = Node(parent, decision)
            self._nodes[id(node)] = node
            self.bytes += NODE_BYTES
        node.outcome = outcome or node.outcome
        self._touch(node)
        self._shrink()
        return node

    def keep_weights(self, node: Node, weights: Any) -> None:
        """Let a node that ends a block hold the block's weights."""
        if node.weights is None and id(node) in self._nodes:
            node.weights = weights
            self._heavy[id(node)] = node
            self.bytes += weights.nbytes
            self._touch(node)
            self._shrink()

    def _touch(self, node: Node) -> None:
        at: Node | None = node
        while at is not None and at.parent is not None:  # ancestors last: they stay the more recent ones
            if id(at) in self._nodes:
                self._nodes.move_to_end(id(at))
            if id(at) in self._heavy:
                self._heavy.move_to_end(id(at))
            at = at.parent

    def _shrink(self) -> None:
        while self.bytes > self.limit and self._heavy:
            _, node = self._heavy.popitem(last=False)
            self.bytes -= node.weights.nbytes
            node.weights = None
        while self.bytes > self.limit and self._nodes:
            _, node = self._nodes.popitem(last=False)
            self.bytes -= NODE_BYTES
            assert node.parent is not None
            node.parent.children.pop(node.decision, None)  # type: ignore[arg-type]

    def rows(self) -> list[Row]:
        """All nodes without their weights, parents before their children, as ``restore`` takes them.

        What hangs on a node that has gone, since a fork still stood there, is left out: nothing leads to it.
        """
        numbers, rows = {id(self.root): -1}, list[Row]()
        for node in reversed(self._nodes.values()):  # newest first: ancestors are the more recent ones
            assert node.decision is not None
            if id(node.parent) in numbers:
                numbers[id(node)] = len(rows)
                rows.append((numbers[id(node.parent)], node.decision, node.outcome))
        return rows

    def restore(self, rows: Sequence[Row], lookups: int = 0, hits: int = 0) -> None:
        """Hold what ``rows`` says, in the order of its use, and nothing else."""
        self.root.children.clear()
        nodes: list[Node] = []
        for parent, decision, outcome in rows:
            above = nodes[parent] if parent >= 0 else self.root
            node = above.children[decision] = Node(above, decision)
            node.outcome = outcome
            nodes.append(node)
        self._nodes = OrderedDict((id(node), node) for node in reversed(nodes))
        self._heavy = OrderedDict()
        self.bytes, self.lookups, self.hits = NODE_BYTES * len(nodes), lookups, hits

    def __iter__(self) -> Iterator[Node]:
        return iter(self._nodes.values())

    def __getstate__(self) -> dict[str, Any]:
        """A table is only a shortcut: a pickled one is empty."""
        return {"limit": self.limit}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]
