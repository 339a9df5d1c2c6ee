"""FedProx: local training is held near what was received (Li et al. 2020, arXiv 1812.06127, equation 2).

minimise  F_k(w) + mu/2 ||w - w_received||^2,    so  gradient <- gradient + mu (w - w_received)
"""

from __future__ import annotations

import numpy as np

from strategies.base import AdapterStrategy, Arrays
from strategies.client_round import ClientRound, Views, WrappedRound
from strategies.wrapper import Wrapper
from umbel.errors import StrategyError


class Proximal(Wrapper):
    """Any method with FedProx's proximal term. The server half and the upload are unchanged.

    Args:
        inner: any method.
        mu: strength, at least 0; 0 is ``inner`` itself.
    """

    def __init__(self, inner: AdapterStrategy, mu: float = 0.01) -> None:
        if not (np.isfinite(mu) and mu >= 0):
            raise StrategyError(f"FedProx's mu {mu} is not a number of at least 0: use 0.01.")
        super().__init__(inner, "fedprox")
        self.mu = mu

    def around(self, inner: ClientRound, extras: Arrays, kept: Arrays) -> ClientRound:
        """The inner round with the proximal gradient."""
        return _ProximalRound(self, inner)


class _ProximalRound(WrappedRound):
    def __init__(self, strategy: Proximal, inner: ClientRound) -> None:
        super().__init__(strategy, inner)
        self._mu = np.float32(strategy.mu)
        self._anchor = inner.spec.views(inner.start.copy())

    @property
    def hooked(self) -> bool:
        return bool(self._mu) or self.inner.hooked

    def gradient(self, gradient: Views, parameters: Views) -> None:
        for name, view in gradient.items():
            view += self._mu * (parameters[name] - self._anchor[name])
        self.inner.gradient(gradient, parameters)
