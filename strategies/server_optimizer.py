"""Server optimizers: the averaged difference is a pseudo-gradient (Reddi et al. 2021, arXiv 2003.00295, algorithm 2).

FedAvgM:     m <- beta1 m + D;                       x <- x + eta m           (Hsu et al. 2019, arXiv 1909.06335)
the others:  m <- beta1 m + (1 - beta1) D;           x <- x + eta m / (sqrt(v) + tau)
FedAdagrad:  v <- v + D^2
FedAdam:     v <- beta2 v + (1 - beta2) D^2
FedYogi:     v <- v - (1 - beta2) D^2 sign(v - D^2)
v starts at tau^2; D is the mean of the uploads.
"""

from __future__ import annotations

from enum import StrEnum

import numpy as np

from strategies.base import AdapterStrategy, StrategyState
from strategies.wrapper import LinearWrapper
from umbel.adapter import AdapterSpec, Vector
from umbel.errors import StrategyError


class ServerOptimizer(StrEnum):
    """The rules of the module's docstring."""

    FEDAVGM = "fedavgm"
    FEDADAGRAD = "fedadagrad"
    FEDADAM = "fedadam"
    FEDYOGI = "fedyogi"


class ServerOptimized(LinearWrapper):
    """A linear method whose mean difference goes through a server optimizer.

    It is post-processing of the mean, so privacy and secure aggregation are untouched. Methods that change the
    meaning of a coordinate from round to round (FedSVD, FLASC) are refused. Moments are kept for each upload
    layout, so RoLoRA's two factors have their own.

    Args:
        inner: a linear method.
        rule: which optimizer.
        learning_rate: eta, positive.
        beta1: momentum, in [0, 1).
        beta2: of FedAdam and FedYogi, in [0, 1).
        tau: adaptivity, positive.
    """

    def __init__(
        self,
        inner: AdapterStrategy,
        rule: ServerOptimizer,
        *,
        learning_rate: float = 1.0,
        beta1: float = 0.9,
        beta2: float = 0.99,
        tau: float = 1e-3,
    ) -> None:
        super().__init__(inner, rule.value)
        if not inner.facts.fixed_basis:
            raise StrategyError(
                f"Strategy {inner.name!r} changes what its upload's coordinates mean every round, so {rule.value} "
                "would add unlike things: choose FedIT, FFA-LoRA, RoLoRA, FedSA-LoRA, Fed-SB or FedDPA."
            )
        if not (learning_rate > 0 and tau > 0 and 0 <= beta1 < 1 and 0 <= beta2 < 1 and np.isfinite(learning_rate)):
            raise StrategyError(
                "The server optimizer needs a positive learning rate and tau and betas in [0, 1): use 1.0, 0.001, "
                "0.9 and 0.99."
            )
        self.rule, self.learning_rate, self.beta1, self.beta2, self.tau = rule, learning_rate, beta1, beta2, tau

    def step(self, spec: AdapterSpec, mean: Vector, state: StrategyState, round_number: int) -> StrategyState:
        """Updates the moments and hands the optimizer's move to ``inner`` in place of the mean."""
        layout = self.upload_spec(spec, round_number).hash[:12]
        m_key, v_key = f"server.m.{layout}", f"server.v.{layout}"
        d = mean.astype(np.float64)
        m = state.arrays[m_key].astype(np.float64) if m_key in state.arrays else np.zeros_like(d)
        arrays = dict(state.arrays)
        if self.rule is ServerOptimizer.FEDAVGM:
            m = self.beta1 * m + d
            move = self.learning_rate * m
        else:
            m = self.beta1 * m + (1 - self.beta1) * d
            v = state.arrays[v_key].astype(np.float64) if v_key in state.arrays else np.full_like(d, self.tau**2)
            if self.rule is ServerOptimizer.FEDADAGRAD:
                v = v + d**2
            elif self.rule is ServerOptimizer.FEDADAM:
                v = self.beta2 * v + (1 - self.beta2) * d**2
            else:
                v = v - (1 - self.beta2) * d**2 * np.sign(v - d**2)
            move = self.learning_rate * m / (np.sqrt(v) + self.tau)
            arrays[v_key] = v.astype(np.float32)
        arrays[m_key] = m.astype(np.float32)
        return self.inner.step(spec, move.astype(np.float32), StrategyState(arrays), round_number)
