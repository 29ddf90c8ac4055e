"""QR-DQN with action masks: as ``agents/dqn.py``, with a distribution of values in place of their mean."""

from typing import Any

import torch
from sb3_contrib import QRDQN
from sb3_contrib.qrdqn.policies import QRDQNPolicy, QuantileNetwork

from agents.dqn import HYPERPARAMETERS as DQN_HYPERPARAMETERS
from agents.masked import ExploresAllowed, masked

HYPERPARAMETERS: dict[str, Any] = {
    **DQN_HYPERPARAMETERS,
    "policy_kwargs": {"net_arch": [128, 128], "n_quantiles": 25},
}


class MaskedQuantileNetwork(QuantileNetwork):
    """Quantiles with those of forbidden actions at ``FORBIDDEN``."""

    def forward(self, obs: Any) -> torch.Tensor:
        """:param obs: (N, features), the last columns being the mask; returns (N, quantiles, actions)"""
        return masked(super().forward(obs), obs)


class MaskedQRDQNPolicy(QRDQNPolicy):
    """sb3-contrib's policy with masked networks."""

    def make_quantile_net(self) -> QuantileNetwork:
        """The same network as sb3-contrib's, masked."""
        net_args = self._update_features_extractor(self.net_args, features_extractor=None)
        return MaskedQuantileNetwork(**net_args).to(self.device)


class MaskedQRDQN(ExploresAllowed, QRDQN):
    """sb3-contrib's QR-DQN that explores among allowed actions and stores the actions that were executed."""
