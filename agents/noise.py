"""Exploration noise of HAQ and AMC."""

import numpy as np
from stable_baselines3.common.noise import ActionNoise


class DecayingTruncatedNormal(ActionNoise):
    """Normal noise, cut at two deviations, that shrinks with every episode.

    As in AMC (He et al. 2018, arXiv 1802.03494) and HAQ (Wang et al. 2019, arXiv 1811.08886),
    where actions lie in [0, 1]; here they lie in [-1, 1], so that the deviations are doubled.

    :param actions: numbers per action
    :param sigma: standard deviation in the first episode, of actions in [0, 1]
    :param decay: factor per episode
    :param warmup: episodes before it begins to shrink
    """

    def __init__(self, actions: int, sigma: float = 0.5, decay: float = 0.99, warmup: int = 0) -> None:
        super().__init__()
        self.actions, self.sigma, self.decay, self.warmup = actions, sigma, decay, warmup
        self.episodes = 0
        self._used = False

    def reset(self) -> None:
        """An episode has ended, if there was one: SB3 also resets before the first."""
        self.episodes += self._used
        self._used = False

    def __call__(self) -> np.ndarray:
        """Noise for one action, (actions,)."""
        self._used = True
        shrunk = 2 * self.sigma * self.decay ** max(0, self.episodes - self.warmup)
        return np.clip(np.random.normal(size=self.actions), -2, 2) * shrunk

    def __repr__(self) -> str:
        return f"DecayingTruncatedNormal(sigma={self.sigma}, decay={self.decay})"
