"""What an episode has done so far, step by step: what those need who learn from divergences."""

import math
from dataclasses import dataclass, field
from typing import Any

from hsq_env.env import HSQEnv


@dataclass
class Walk:
    """The beginning of an episode.

    :param choices: executed, as indices
    :param divergences: after each of them; NaN for a diverged student
    """

    choices: list[int] = field(default_factory=list)
    divergences: list[float] = field(default_factory=list)

    def add(self, env: HSQEnv, info: dict[str, Any]) -> None:
        """Note a step by its info."""
        self.choices.append(env.actions.decode(info["executed_action"]))
        self.divergences.append(math.nan if info["diverged"] else info["divergence"])

    @property
    def finite(self) -> bool:
        """Whether the student never diverged."""
        return all(map(math.isfinite, self.divergences))
