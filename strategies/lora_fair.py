"""LoRA-FAIR: averaged factors with a server-side correction of B (Bian et al. 2024, arXiv 2411.14961, section 4).

    A <- sum p_k A_k,   B' = sum p_k B_k,   M = sum p_k B_k A_k,   B <- B' + D with D minimising
    ||M - (B' + D) A||_F^2 + lambda ||D||_F^2,   that is   D = (M - B' A) A^T (A A^T + lambda I)^-1

The paper minimises a similarity loss plus the same penalty by gradient steps. With the squared distance as the loss the
minimiser has this closed form, which is what is used here.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from strategies.base import StrategyFacts
from strategies.individual import Individual, Layer
from umbel.errors import StrategyError


class LoraFair(Individual):
    """FedIT whose B is moved towards the exact average, as far as rank r and the averaged A allow.

    Not exact, and never further from the exact average than FedIT. Up and down: both factors.

    Args:
        penalty: lambda, at least 0, relative to the mean squared row norm of A; large values give FedIT.
    """

    name = "lora-fair"
    facts = StrategyFacts(
        paper="Bian et al. 2024, arXiv 2411.14961",
        linear=False,
        exact=False,
        private=False,
        heterogeneous_ranks=False,
        note="FedIT with B corrected at the server towards the exact average.",
    )

    needs = "LoRA-FAIR multiplies every client's own factors"

    def __init__(self, penalty: float = 0.01) -> None:
        if not (np.isfinite(penalty) and penalty >= 0):
            raise StrategyError(f"LoRA-FAIR's penalty {penalty} is not a number of at least 0: use 0.01.")
        self.penalty = penalty

    def merge(self, layer: Layer) -> None:
        """Averages the factors and corrects B."""
        pair, views = layer.pair, layer.views
        a, b = layer.mean(pair.a.name), layer.mean(pair.b.name)
        # M A^T, from the factors: [out, r] without the dense M.
        own = [(local.share, v) for local, v in zip(layer.locals_, layer.padded, strict=True)]
        target = np.sum([p * v[pair.b.name] @ (v[pair.a.name] @ a.T) for p, v in own], axis=0)
        views[pair.a.name][...] = a
        views[pair.b.name][...] = b + correction(target, a, b, self.penalty)


def correction(
    target: npt.NDArray[np.float64], a: npt.NDArray[np.float64], b: npt.NDArray[np.float64], penalty: float
) -> npt.NDArray[np.float64]:
    """D [out, r] of the module's docstring.

    Args:
        target: M A^T, [out, r].
        a: the averaged A, [r, in].
        b: the averaged B, [out, r].
        penalty: lambda over the mean squared row norm of A. With 0 and a singular A A^T, the least-norm D.
    """
    gram = a @ a.T
    ridge = gram + penalty * (np.trace(gram) / gram.shape[0]) * np.eye(gram.shape[0])
    return np.asarray((target - b @ gram) @ np.linalg.pinv(ridge, rcond=1e-12, hermitian=True))
