"""What is known of every layer before a search, for its record: a report says from it why layers have their choices."""

import math
from typing import Any

from hsq_env.env import HSQEnv


def layer_figures(env: HSQEnv) -> dict[str, Any]:
    """Bytes and sensitivity of every layer under every choice.

    :return: ``{"choices": [[bits, sparsity], ...], "rows": [{"name", "weights", "macs", "float_bytes", "bytes",
        "sensitivity"}, ...]}``, the last two with a number per choice
    """
    rows = zip(env.layers, env.layer_costs.float_sizes, env.sizes, env.sensitivities, strict=True)
    return {
        "choices": [[choice.bits, choice.sparsity] for choice in env.choices],
        "rows": [
            {
                "name": info.name,
                "weights": math.prod(info.shape),
                "macs": info.macs,
                "float_bytes": float_bytes,
                "bytes": sizes.tolist(),
                "sensitivity": sensitivities.tolist(),
            }
            for info, float_bytes, sizes, sensitivities in rows
        ],
    }
