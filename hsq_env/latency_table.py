"""The table of ``hsq latency``: seconds of every layer under every choice, as a cost to be rewarded or bounded."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detectors.errors import InputError
from hsq_env.budget import Budget
from hsq_env.choices import Choice
from hsq_env.student import LayerInfo

FLOAT32 = "32"
NANO = 1e9  # costs are whole numbers, as bytes are


def timed_as(choice: Choice, pattern: str) -> str:
    """The column of a choice: "8", or "8/0.5" where whole channels are dropped; single zeros make nothing faster."""
    share = f"/{choice.sparsity:g}" if pattern == "channels" and choice.sparsity else ""
    return f"{choice.bits}{share}"


@dataclass(frozen=True)
class LatencyTable:
    """What was measured on one machine for one teacher.

    :param source: the file that it came from
    :param seconds: by layer and column (``timed_as``; "32" is float32), of all calls in a forward pass together
    """

    source: str
    seconds: Mapping[str, Mapping[str, float]]

    @classmethod
    def read(cls, path: str | Path) -> "LatencyTable":
        """The file that ``hsq latency --out`` writes.

        :raises InputError: if it is missing or something else
        """
        try:
            rows = json.loads(Path(path).read_text())["layers"]
            table = {str(row["name"]): {str(k): float(v) for k, v in row["seconds"].items()} for row in rows}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"The latencies {path} cannot be read ({type(error).__name__}: {error}): make them with "
                "hsq latency --out FILE."
            ) from error
        if not all(0 < s < math.inf for row in table.values() for s in row.values()):
            raise InputError(f"The latencies {path} hold times that cannot be: measure them again with hsq latency.")
        return cls(str(path), table)

    def to_json(self) -> dict[str, Any]:
        """What ``read`` reads."""
        return {"layers": [{"name": name, "seconds": dict(row)} for name, row in self.seconds.items()]}

    def milliseconds(self, infos: Sequence[LayerInfo], choices: Sequence[Choice] | None, pattern: str) -> float:
        """Of all layers of a plan together; of float32 when ``choices`` is None.

        :param choices: one per layer
        """
        columns = [FLOAT32] * len(infos) if choices is None else [timed_as(c, pattern) for c in choices]
        return sum(self._of(info.name, column) for info, column in zip(infos, columns, strict=True)) / 1e6

    def nanoseconds(self, infos: Sequence[LayerInfo], choices: Sequence[Choice], pattern: str) -> NDArray[np.int64]:
        """Of every layer (rows) under every choice (columns).

        :raises InputError: if a layer or a column is not in the table
        """
        return np.array([[self._of(info.name, timed_as(c, pattern)) for c in choices] for info in infos], np.int64)

    def float_nanoseconds(self, infos: Sequence[LayerInfo]) -> NDArray[np.int64]:
        """Of every layer in float32."""
        return np.array([self._of(info.name, FLOAT32) for info in infos], np.int64)

    def _of(self, layer: str, column: str) -> int:
        row = self.seconds.get(layer)
        if row is None:
            raise InputError(
                f"The latencies {self.source} lack the layer '{layer}': measure this very network with "
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
    if not (milliseconds > 0 and milliseconds * NANO / 1000 >= least):
        reached = math.ceil(least / NANO * 1e5) / 100  # rounded up: whoever asks for it gets it
        raise InputError(
            f"A latency of {milliseconds:g} ms cannot be reached: the table's fastest plan takes {reached:.2f} ms; "
            "raise --target-latency (target_latency)."
        )
    return Budget(costs, 0, float_cost, float_cost / (milliseconds * NANO / 1000))
