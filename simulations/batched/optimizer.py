"""AdamW and SGD over lanes: one flat tensor [lanes, d], the arithmetic of torch.optim, a learning rate a lane."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from umbel.config import TrainConfig

Present = npt.NDArray[np.bool_]
_BETA1, _BETA2, _EPS = 0.9, 0.999, 1e-8


class LaneOptimizer(ABC):
    """Steps the first lanes of ``weights`` in place; what a lane has no gradient for is left as it is.

    Args:
        weights: [lanes, d].
        sizes: of the tensors side by side in a row, their sum being d.
        config: of the training.
    """

    def __init__(self, weights: Tensor, sizes: Sequence[int], config: TrainConfig) -> None:
        self._weights = weights
        self._sizes = torch.tensor(list(sizes), device=weights.device)
        self._decay = config.weight_decay

    @abstractmethod
    def step(self, gradients: Tensor, rates: Sequence[float], present: Present) -> None:
        """One step of lanes 0 to n - 1.

        Args:
            gradients: [n, d]; overwritten.
            rates: learning rate of each of the n lanes.
            present: bool [n, tensors]; False leaves the tensor of that lane and its state untouched.
        """

    def _columns(self, rates: Sequence[float]) -> float | Tensor:
        """One number where all lanes agree, which is both faster and what torch.optim computes; else [n, 1]."""
        if len(set(rates)) == 1:
            return rates[0]
        return torch.tensor(rates, dtype=self._weights.dtype, device=self._weights.device).unsqueeze(1)

    def _spread(self, values: npt.NDArray[np.float64] | Present) -> Tensor:
        """[n, tensors] to [n, d]."""
        made = torch.from_numpy(np.ascontiguousarray(values)).to(self._weights.device)
        if made.dtype != torch.bool:
            made = made.to(self._weights.dtype)
        return made.repeat_interleave(self._sizes, dim=1)


class LaneSGD(LaneOptimizer):
    """torch.optim.SGD with momentum and coupled weight decay."""

    def __init__(self, weights: Tensor, sizes: Sequence[int], config: TrainConfig) -> None:
        super().__init__(weights, sizes, config)
        self._momentum = config.momentum
        self._velocity = torch.zeros_like(weights) if config.momentum else None

    def step(self, gradients: Tensor, rates: Sequence[float], present: Present) -> None:
        """See LaneOptimizer."""
        weights = self._weights[: len(rates)]
        keep = None if present.all() else self._spread(present)
        if self._decay:
            gradients.add_(weights, alpha=self._decay)
        move = gradients
        if self._velocity is not None:
            velocity = self._velocity[: len(rates)]
            move = velocity.mul(self._momentum).add_(gradients)
            velocity.copy_(move if keep is None else torch.where(keep, move, velocity))
        if keep is not None:
            move = torch.where(keep, move, torch.zeros_like(move))
        rate = self._columns(rates)
        if isinstance(rate, float):
            weights.add_(move, alpha=-rate)
        else:
            weights.sub_(move * rate)


class LaneAdamW(LaneOptimizer):
    """torch.optim.AdamW (Loshchilov and Hutter 2019) with its default betas and epsilon."""

    def __init__(self, weights: Tensor, sizes: Sequence[int], config: TrainConfig) -> None:
        super().__init__(weights, sizes, config)
        self._first = torch.zeros_like(weights)
        self._second = torch.zeros_like(weights)
        self._counts = np.zeros((weights.shape[0], len(sizes)), dtype=np.int64)

    def step(self, gradients: Tensor, rates: Sequence[float], present: Present) -> None:
        """See LaneOptimizer."""
        n = len(rates)
        counts = self._counts[:n]
        counts += present
        rate = self._columns(rates)
        if present.all() and (counts == counts[0, 0]).all():
            self._together(n, gradients, rate, int(counts[0, 0]))
        else:
            self._apart(n, gradients, rate, counts, present)

    def _together(self, n: int, gradients: Tensor, rate: float | Tensor, count: int) -> None:
        weights, first, second = self._weights[:n], self._first[:n], self._second[:n]
        if self._decay:
            weights.mul_(1 - rate * self._decay)
        first.lerp_(gradients, 1 - _BETA1)
        second.mul_(_BETA2).addcmul_(gradients, gradients, value=1 - _BETA2)
        scale = torch.sqrt(second, out=gradients).div_((1 - _BETA2**count) ** 0.5).add_(_EPS)
        if isinstance(rate, float):
            weights.addcdiv_(first, scale, value=-rate / (1 - _BETA1**count))
        else:
            weights.sub_((first / scale).mul_(rate / (1 - _BETA1**count)))

    def _apart(
        self, n: int, gradients: Tensor, rate: float | Tensor, counts: npt.NDArray[np.int64], present: Present
    ) -> None:
        """Tensors that missed steps (a lane without images) have bias corrections of their own."""
        weights, first, second = self._weights[:n], self._first[:n], self._second[:n]
        keep = self._spread(present)
        steps = np.maximum(counts, 1).astype(np.float64)
        new_first = torch.where(keep, first.lerp(gradients, 1 - _BETA1), first)
        new_second = torch.where(keep, (second * _BETA2).addcmul_(gradients, gradients, value=1 - _BETA2), second)
        scale = new_second.sqrt().div_(self._spread((1 - _BETA2**steps) ** 0.5)).add_(_EPS)
        decayed = weights * (1 - rate * self._decay) if self._decay else weights
        moved = decayed - (new_first / scale).mul_(rate).div_(self._spread(1 - _BETA1**steps))
        weights.copy_(torch.where(keep, moved, weights))
        first.copy_(new_first)
        second.copy_(new_second)


def lane_optimizer(weights: Tensor, sizes: Sequence[int], config: TrainConfig) -> LaneOptimizer:
    """The optimizer of ``config.optimizer``; see :class:`LaneOptimizer`."""
    kind = LaneSGD if config.optimizer == "sgd" else LaneAdamW
    return kind(weights, sizes, config)


def clip_lanes_(gradients: Tensor, largest: float) -> None:
    """Scales each lane's gradient [lanes, d] in place to an L2 norm of at most ``largest``, as ``clip_grad_norm_``."""
    norms = torch.linalg.vector_norm(gradients, dim=1, keepdim=True)
    gradients.mul_(torch.clamp(largest / (norms + 1e-6), max=1.0))
