"""What every choice of every layer costs: bytes, bit operations and, with a table, time."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from detectors.errors import InputError
from hsq_env.budget import Budget
from hsq_env.channels import shared_inputs
from hsq_env.choices import Choice
from hsq_env.file import fixed_bytes
from hsq_env.latency_table import LatencyTable, latency_budget
from hsq_env.operations import operation_shares
from hsq_env.size import layer_bytes, size_table
from hsq_env.student import Student

Costs = NDArray[np.int64]


class LayerCosts:
    """Tables of (layers, choices), and what all layers cost in float32.

    :param student: of the problem, with any plan; it is left as it is
    :param teacher_bytes: of the float32 teacher file
    :param table: a file of ``hsq latency`` or what it holds; None without
    :raises InputError: if the table is of another network
    """

    def __init__(
        self,
        student: Student,
        choices: Sequence[Choice],
        teacher_bytes: int,
        table: LatencyTable | str | Path | None = None,
    ) -> None:
        layers, bits, pattern = student.infos, student.activation_bits, student.pattern
        self.teacher_bytes = teacher_bytes
        self.sizes: Costs = size_table(layers, choices, pattern, bits is not None)
        self.float_sizes = [layer_bytes(info, None) for info in layers]
        self.fixed_bytes = fixed_bytes(student, choices, self.sizes)
        self.operation_shares = operation_shares(layers, choices, bits, pattern)
        self.table = LatencyTable.read(table) if isinstance(table, str | Path) else table
        self.latencies: Costs | None = None
        self.latency_shares = np.zeros(self.sizes.shape)
        if self.table is not None:
            shared = shared_inputs(student.channel_groups)
            self.latencies = self.table.nanoseconds(layers, choices, pattern, shared)
            self.float_latencies: Costs = self.table.float_nanoseconds(layers)
            self.latency_shares = self.latencies * len(layers) / self.float_latencies.sum()

    def budgets(
        self, target_ratio: float | Sequence[float] | None, target_latency: float | None
    ) -> tuple[Costs, dict[float | None, Budget]]:
        """What is bounded, bytes or nanoseconds, and the budgets of it by target ratio (None for time).

        :param target_ratio: teacher bytes over student bytes, several, or None for no budget of bytes
        :param target_latency: milliseconds, or None
        :raises InputError: if both are given, one cannot be reached, or there is no table for the latter
        """
        if target_latency is not None:
            if target_ratio is not None:
                raise InputError("A search has one budget: give target_ratio or target_latency (--target-...).")
            if self.latencies is None:
                raise InputError("target_latency needs a table: give the file of hsq latency (--latency-table).")
            whole = int(self.float_latencies.sum())
            return self.latencies, {None: latency_budget(self.latencies, whole, target_latency)}
        targets = target_ratio if isinstance(target_ratio, Sequence) else (target_ratio,)
        if not targets:
            raise InputError("target_ratio is empty: give a ratio, several, or None for no budget.")
        return self.sizes, {t: Budget(self.sizes, self.fixed_bytes, self.teacher_bytes, t) for t in targets}

    def model_share(self, layer: int) -> float:
        """The layer's float32 bytes over those of all layers, times the number of layers."""
        return self.float_sizes[layer] / sum(self.float_sizes) * len(self.float_sizes)
