"""A finished episode."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from hsq_env.choices import Plan


@dataclass(frozen=True)
class Episode:
    """A finished episode: everything needed to replay and judge it.

    :param source: who chose, an agent's name or a baseline's
    :param total_reward: sum of the rewards
    :param accuracy: on the search split, after the last layer
    :param divergence: likewise
    :param target_ratio: that it was asked for
    :param ratio: as counted from the plan
    """

    source: str
    plan: Plan
    total_reward: float
    accuracy: float
    ratio: float
    seconds: float
    divergence: float = 0.0
    target_ratio: float | None = None

    @classmethod
    def of(cls, source: str, info: dict[str, Any], total_reward: float, seconds: float) -> "Episode":
        """From the info of an episode's last step."""
        return cls(
            source,
            info["plan"],
            total_reward,
            info["accuracy"],
            info["ratio"],
            round(seconds, 2),
            math.inf if info["diverged"] else info["divergence"],
            info["target_ratio"],
        )

    def to_json(self) -> dict[str, Any]:
        """Without the plan's layer names."""
        short = [[c.bits, c.sparsity] for c in self.plan.choices]
        return {**{k: v for k, v in asdict(self).items() if k != "plan"}, "choices": short}
