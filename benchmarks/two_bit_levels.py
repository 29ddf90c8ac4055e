"""Which four levels serve 2-bit weights better: balanced around zero, or {-2, -1, 0, 1}?

python -m benchmarks.two_bit_levels

For every layer of the embedded teacher alone at 2 bits, without and with 75 % sparsity: the distillation loss on the
calibration images under both sets of levels, scales chosen alike by least squared error. Writes
``benchmarks/results/two_bit_levels.json``.
"""

from unittest.mock import patch

import numpy as np

import hsq_env  # noqa: F401 - before torch
from benchmarks.record import write_result
from detectors.task import detection_task
from hsq_env import layers as layers_module
from hsq_env.choices import Choice
from hsq_env.layer_info import trace_layers
from hsq_env.quantizers import Levels
from hsq_env.sensitivity import measure_sensitivity

CANDIDATES = {"balanced": Levels(-2, 1, 0.5), "with_zero": Levels(-2, 1, 0.0)}
CHOICES = (Choice(2, 0.0), Choice(2, 0.75))


def main() -> None:
    """Measure and write."""
    task = detection_task()
    infos = trace_layers(task)
    tables = {}
    for name, levels in CANDIDATES.items():
        with patch.object(layers_module, "weight_levels", lambda choice, levels=levels: levels):
            tables[name] = measure_sensitivity(task, infos, CHOICES, activation_bits=None)
    figures = {}
    for column, choice in enumerate(CHOICES):
        balanced, with_zero = tables["balanced"][:, column], tables["with_zero"][:, column]
        figures[str(choice)] = {
            "layers": len(infos),
            "balanced_better": int((balanced < with_zero).sum()),
            "geometric_mean_ratio": float(np.exp(np.mean(np.log((balanced + 1e-9) / (with_zero + 1e-9))))),
            "sum_balanced": float(balanced.sum()),
            "sum_with_zero": float(with_zero.sum()),
        }
        print(choice, figures[str(choice)])
    raw = {name: table.tolist() for name, table in tables.items()}
    print(f"wrote {write_result('two_bit_levels', {'loss': figures, 'raw': raw})}")


if __name__ == "__main__":
    main()
