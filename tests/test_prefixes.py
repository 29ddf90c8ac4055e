"""The table of visited prefixes."""

import pickle
from dataclasses import dataclass

import numpy as np
import pytest

from hsq_env.choices import Choice
from hsq_env.prefixes import NODE_BYTES, Decision, Node, Outcome, PrefixTable

ONE, TWO, THREE = (Decision(Choice(bits), 0.3) for bits in (2, 4, 8))


@dataclass
class Weights:
    nbytes: int


def walk(table: PrefixTable, *decisions: Decision) -> Node:
    """Add what is not there yet."""
    node = table.root
    for depth, decision in enumerate(decisions):
        node = table.find(node, decision) or table.add(node, decision, Outcome(float(depth), True, 0.25))
    return node


def reached(table: PrefixTable) -> set[tuple[Decision, ...]]:
    """Every prefix that can be found from the root, without counting as a use."""
    found, open_nodes = set(), [table.root]
    while open_nodes:
        node = open_nodes.pop()
        open_nodes += node.children.values()
        found |= {tuple(node.decisions())} if node.parent is not None else set()
    return found


def test_what_was_measured_is_found_again() -> None:
    table = PrefixTable(10**6)
    assert table.find(table.root, ONE) is None
    node = walk(table, ONE, TWO)
    assert node.outcome == Outcome(1.0, True, 0.25) and node.depth == 2 and node.decisions() == [ONE, TWO]
    again = table.find(table.root, ONE)
    assert again is node.parent and again.outcome == Outcome(0.0, True, 0.25)
    assert table.find(again, TWO) is node and table.find(again, ONE) is None
    assert table.find(table.root, Decision(ONE.choice, 0.4)) is None  # another alpha is another prefix


def test_a_place_without_an_outcome_is_not_known() -> None:
    table = PrefixTable(10**6)
    node = table.add(table.root, ONE, None)
    assert table.find(table.root, ONE) is None
    assert table.add(table.root, ONE, Outcome(0.5, False, 0.25)) is node
    assert table.add(table.root, ONE, None).outcome == Outcome(0.5, False, 0.25)  # what is known is not forgotten
    assert table.find(table.root, ONE) is node


def test_weights_go_before_nodes() -> None:
    table = PrefixTable(2 * NODE_BYTES + 1000)
    first, second = walk(table, ONE), walk(table, TWO)
    table.keep_weights(first, Weights(600))
    table.keep_weights(second, Weights(600))
    assert first.weights is None and second.weights == Weights(600)
    assert reached(table) == {(ONE,), (TWO,)} and table.bytes == 2 * NODE_BYTES + 600
    table.keep_weights(second, Weights(1))  # it has some
    assert second.weights == Weights(600) and table.bytes == 2 * NODE_BYTES + 600


def test_the_least_recently_used_leaf_goes_first() -> None:
    table = PrefixTable(4 * NODE_BYTES)
    walk(table, ONE, ONE, ONE)
    walk(table, TWO)
    walk(table, ONE, ONE)
    walk(table, THREE)  # (ONE, ONE, ONE) is older than (TWO,)
    assert reached(table) == {(ONE,), (ONE, ONE), (TWO,), (THREE,)}
    walk(table, ONE, TWO)
    assert reached(table) == {(ONE,), (ONE, ONE), (THREE,), (ONE, TWO)}


def test_a_table_without_room_holds_nothing() -> None:
    table = PrefixTable(0)
    node = walk(table, ONE, TWO)
    assert node.decisions() == [ONE, TWO] and len(table) == table.bytes == 0
    table.keep_weights(node, Weights(5))
    assert node.weights is None and table.bytes == 0
    assert table.find(table.root, ONE) is None


def test_a_pickled_table_is_empty() -> None:
    table = PrefixTable(12345)
    walk(table, ONE, TWO)
    other = pickle.loads(pickle.dumps(table))
    assert other.limit == 12345 and len(other) == other.bytes == 0 and reached(other) == set()
    assert len(table) == 2


@pytest.mark.parametrize("limit", [NODE_BYTES, 5 * NODE_BYTES + 700, 60 * NODE_BYTES])
def test_any_use_keeps_to_the_limit_and_agrees_with_a_plain_list(limit: int) -> None:
    """The reference keeps prefixes and weights in two lists, the most recently used last."""
    rng, table = np.random.default_rng(0), PrefixTable(limit)
    prefixes: list[tuple[Decision, ...]] = []
    heavy: dict[tuple[Decision, ...], int] = {}

    def shrink() -> None:
        def total() -> int:
            return len(prefixes) * NODE_BYTES + sum(heavy.values())

        while total() > limit and heavy:
            del heavy[min(heavy, key=prefixes.index)]
        while total() > limit and prefixes:
            del prefixes[0]

    for _ in range(600):
        node, path = table.root, ()
        for _ in range(int(rng.integers(1, 6))):
            decision = (ONE, TWO, THREE)[int(rng.integers(3))]
            path = (*path, decision)
            found = table.find(node, decision)
            whole = all(path[:depth] in prefixes for depth in range(1, len(path) + 1))
            assert (found is not None) == whole
            node = found or table.add(node, decision, Outcome(0.0, True, 0.25))
            for depth in range(len(path), 0, -1):
                if path[:depth] in prefixes or depth == len(path):
                    prefixes[:] = [p for p in prefixes if p != path[:depth]] + [path[:depth]]
            shrink()
            if rng.random() < 0.3 and path in prefixes and path not in heavy:
                heavy[path] = int(rng.integers(1, 900))
                table.keep_weights(node, Weights(heavy[path]))
                shrink()
            assert table.bytes == len(prefixes) * NODE_BYTES + sum(heavy.values()) <= limit
            assert [tuple(n.decisions()) for n in table] == prefixes
            assert {tuple(n.decisions()): n.weights.nbytes for n in table if n.weights is not None} == heavy


def grown() -> PrefixTable:
    """Four places, one without an outcome, one with weights; the order of use is not that of coming."""
    table = PrefixTable(10 * NODE_BYTES)
    walk(table, ONE, TWO)
    table.keep_weights(walk(table, ONE), Weights(77))
    table.add(table.root, THREE, None)
    walk(table, TWO)
    walk(table, ONE, TWO)
    return table


def used(table: PrefixTable) -> list[tuple[Decision, ...]]:
    """What the table holds, the least recently used first."""
    return [tuple(node.decisions()) for node in table]


def test_rows_say_what_stands_where_parents_first() -> None:
    table = grown()
    assert used(table) == [(THREE,), (TWO,), (ONE, TWO), (ONE,)]
    assert table.rows() == [
        (-1, ONE, Outcome(0.0, True, 0.25)),
        (0, TWO, Outcome(1.0, True, 0.25)),
        (-1, TWO, Outcome(0.0, True, 0.25)),
        (-1, THREE, None),
    ]


def test_a_restored_table_goes_on_as_the_other_but_for_its_weights() -> None:
    table, other = grown(), PrefixTable(10 * NODE_BYTES)
    walk(other, THREE, THREE)
    other.keep_weights(walk(other, TWO), Weights(5))
    other.restore(table.rows(), table.lookups, table.hits)
    assert used(other) == used(table) and reached(other) == set(used(table)) and len(other) == 4
    assert other.rows() == table.rows() and other.bytes == 4 * NODE_BYTES
    assert (other.lookups, other.hits) == (table.lookups, table.hits) == (6, 3)
    assert all(node.weights is None for node in other)
    assert [node.depth for node in other] == [1, 1, 2, 1]
    found = other.find(other.root, ONE)
    assert found is not None and found.parent is other.root and other.find(found, TWO) is not None
    assert other.find(other.root, THREE) is None  # its outcome is not known here either
    other.limit = 2 * NODE_BYTES
    other.add(other.root, TWO, None)  # the least recently used go, as they would from the other
    assert used(other) == [(ONE,), (TWO,)]


def test_rows_leave_out_what_hangs_on_a_node_that_has_gone() -> None:
    """Taken for the root's children, such nodes would be found where they never were."""
    table = PrefixTable(2 * NODE_BYTES)
    lost = walk(table, ONE, TWO)
    walk(table, THREE)
    assert reached(table) == {(ONE,), (THREE,)}
    table.add(lost, THREE, Outcome(7.0, True, 0.25))  # a fork still stands there
    assert used(table) == [(ONE, TWO, THREE), (ONE,)]  # of which the former cannot be reached
    assert table.rows() == [(-1, ONE, Outcome(0.0, True, 0.25))]
    table.restore(table.rows())
    assert reached(table) == {(ONE,)}


def test_restoring_nothing_empties_a_table() -> None:
    table = grown()
    table.restore([])
    assert (len(table), table.bytes, table.lookups, table.hits, reached(table)) == (0, 0, 0, 0, set())
    table.limit = NODE_BYTES
    assert table.find(table.root, ONE) is None and used(table) == []
    walk(table, ONE)
    table.keep_weights(walk(table, ONE), Weights(1))  # over the limit: the old weights are none that could go
    assert used(table) == [(ONE,)] and table.bytes == NODE_BYTES


def test_lookups_and_hits_are_counted() -> None:
    table = PrefixTable(10**6)
    assert (table.lookups, table.hits) == (0, 0)
    table.find(table.root, ONE)
    table.add(table.root, ONE, None)
    table.find(table.root, ONE)
    assert (table.lookups, table.hits) == (2, 0)
    table.add(table.root, ONE, Outcome(0.5, True, 0.25))
    table.find(table.root, ONE)
    table.find(table.root, ONE)
    assert (table.lookups, table.hits) == (4, 2)
