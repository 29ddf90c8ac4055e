"""The table of ``hsq latency``: seconds of every layer under every choice, as a cost to be rewarded or bounded."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detectors.errors import InputError
from hsq_env.budget import Budget
from hsq_env.choices import Choice
from hsq_env.layer_info import LayerInfo

FLOAT32 = "32"
LONGEST = 1e6  # seconds of a layer
NANO = 1e9  # costs are whole numbers, as bytes are


def timed_as(choice: Choice, pattern: str) -> str:
    """The column of a choice: "8", or "8/0.5" where whole channels are dropped; single zeros make nothing faster.

    >>> timed_as(Choice(8, 0.5), "unstructured"), timed_as(Choice(8, 0.5), "channels")
    ('8', '8/0.5')
    """
    share = f"/{choice.sparsity:g}" if pattern == "channels" and choice.sparsity else ""
    return f"{choice.bits}{share}"


@dataclass(frozen=True)
class LatencyTable:
    """What was measured on one machine for one teacher.

    :param source: the file that it came from
    :param seconds: by layer and column (``timed_as``; "32" is float32), of all calls in a forward pass together
    :param shapes: of the layers' weights, where they are known
    :param record: the file's whole content
    """

    source: str
    seconds: Mapping[str, Mapping[str, float]]
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    record: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def is_one(cls, path: str | Path) -> bool:
        """Whether a file can be read as a table."""
        try:
            cls.read(path)
        except InputError:
            return False
        return True

    @classmethod
    def read(cls, path: str | Path) -> "LatencyTable":
        """The file that ``hsq latency --out`` writes.

        :raises InputError: if it is missing or something else
        """
        try:
            record = json.loads(Path(path).read_text())
            rows = record["layers"]
            table = {str(row["name"]): {str(k): float(v) for k, v in row["seconds"].items()} for row in rows}
            shapes = {str(row["name"]): tuple(row["shape"]) for row in rows if "shape" in row}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise InputError(
                f"The latencies {path} cannot be read ({type(error).__name__}: {error}): make them with "
                "hsq latency --out FILE."
            ) from error
        if not all(0 < s < LONGEST for row in table.values() for s in row.values()):
            raise InputError(f"The latencies {path} hold times that cannot be: measure them again with hsq latency.")
        return cls(str(path), table, shapes, record)

    def to_json(self) -> dict[str, Any]:
        """What ``read`` reads: its file again, where it came from one."""
        if self.record:
            return dict(self.record)
        return {"layers": [{"name": name, "seconds": dict(row)} for name, row in self.seconds.items()]}

    def milliseconds(
        self, infos: Sequence[LayerInfo], choices: Sequence[Choice] | None, pattern: str, shared: frozenset[str]
    ) -> float:
        """Of all layers of a plan together, one choice for each; of float32 when ``choices`` is None.

        :param shared: see ``nanoseconds``
        """
        if choices is None:
            return float(self.float_nanoseconds(infos).sum()) / 1e6
        pairs = zip(infos, choices, strict=True)
        return sum(int(self.nanoseconds([info], [choice], pattern, shared).sum()) for info, choice in pairs) / 1e6

    def nanoseconds(
        self, infos: Sequence[LayerInfo], choices: Sequence[Choice], pattern: str, shared: frozenset[str]
    ) -> NDArray[np.int64]:
        """Of every layer (rows) under every choice (columns).

        :param shared: names of the layers whose input channels can be taken out of the network; for others dropping
            some makes nothing faster
        :raises InputError: if a layer or a column is not in the table, or a layer is another
        """
        patterns = [pattern if info.name in shared else "" for info in infos]
        pairs = list(zip(infos, patterns, strict=True))
        return np.array([[self._of(info, timed_as(c, own)) for c in choices] for info, own in pairs], np.int64)

    def float_nanoseconds(self, infos: Sequence[LayerInfo]) -> NDArray[np.int64]:
        """Of every layer in float32."""
        return np.array([self._of(info, FLOAT32) for info in infos], np.int64)

    def _of(self, info: LayerInfo, column: str) -> int:
        layer = info.name
        row = self.seconds.get(layer)
        if row is None or self.shapes.get(layer, info.shape) != info.shape:
            raise InputError(
                f"The latencies {self.source} lack the layer '{layer}' of {info.shape}: measure this very network with "
                "hsq latency --teacher FILE."
            )
        if column not in row:
            raise InputError(
                f"The latencies {self.source} lack '{column}' (bits/sparsity) of '{layer}': whole channels are "
                "timed with hsq latency --sparsity-pattern channels."
            )
        return max(1, round(NANO * row[column]))


def latency_budget(costs: NDArray[np.int64], float_cost: int, milliseconds: float) -> Budget:
    """A budget of nanoseconds in the place of bytes.

    :param costs: of every layer (rows) under every choice (columns)
    :param float_cost: of all layers in float32
    :param milliseconds: that all layers together may take
    :raises InputError: if no plan is as fast, naming the fastest
    """
    least = int(costs.min(axis=1).sum())
    if not least <= milliseconds * NANO / 1000 < math.inf:
        reached = math.ceil(least / NANO * 1e5) / 100  # rounded up: whoever asks for it gets it
        raise InputError(
            f"A latency of {milliseconds:g} ms cannot be reached: the table's fastest plan takes {reached:.2f} ms; "
            "raise --target-latency (target_latency)."
        )
    return Budget(costs, 0, float_cost, float_cost / (milliseconds * NANO / 1000))
