"""Black-box canaries: whole examples, of which the adversary sees only the finished model's losses.

An image of noise with random-token targets is like nothing in the data, so its loss after training tells best whether
it was trained on. And canary clients, for client-level privacy: updates along single entries of the adapter vector.
Both give scores that :func:`privacy.audit.one_run.judge` turns into a bound; both are weaker than gradient canaries.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from privacy.noise import SYSTEM, NoiseSource, normal
from umbel.errors import PrivacyError


@dataclass(frozen=True, eq=False)
class ExampleCanaries:
    """Canary examples and the coins that decide which are trained on.

    Attributes:
        images: float32 [m, 3, side, side], standard normal: as pixels look after normalisation.
        targets: int64 [m, length], uniform over the allowed tokens.
        members: bool [m].
    """

    images: Tensor
    targets: Tensor
    members: npt.NDArray[np.bool_]

    @classmethod
    def draw(
        cls, count: int, side: int, length: int, tokens: npt.NDArray[np.int64], source: NoiseSource = SYSTEM
    ) -> ExampleCanaries:
        """Draws canaries.

        Args:
            count: m, at least 1.
            side: pixels a side.
            length: target tokens of each.
            tokens: ids that may be drawn: leave special tokens out.
            source: of all randomness.

        Raises:
            PrivacyError: a count below 1 or no token to draw from.
        """
        if min(count, side, length, len(tokens)) < 1:
            raise PrivacyError(
                f"{count} canaries of side {side} with {length} of {len(tokens)} tokens cannot be drawn: all four must "
                "be at least 1."
            )
        pixels = normal(count * 3 * side * side, source).astype(np.float32).reshape(count, 3, side, side)
        picks = (source.uniform(count * length) * len(tokens)).astype(np.int64)
        targets = np.asarray(tokens, dtype=np.int64)[picks].reshape(count, length)
        return cls(torch.from_numpy(pixels), torch.from_numpy(targets), source.uniform(count) < 0.5)


def loss_scores(before: Tensor, after: Tensor) -> npt.NDArray[np.float64]:
    """How far each canary's loss fell, float64 [m]; a loss that is not finite gives NaN, on which nothing is guessed.

    Args:
        before: losses [m] under the model as it was before training: what is hard anyway cancels.
        after: losses [m] under the released model.

    Raises:
        PrivacyError: the shapes differ.
    """
    if before.shape != after.shape or before.ndim != 1:
        raise PrivacyError(
            f"Losses before {tuple(before.shape)} and after {tuple(after.shape)} training differ: give one a canary."
        )
    fall = (before.detach().double() - after.detach().double()).cpu().numpy()
    scores: npt.NDArray[np.float64] = np.where(np.isfinite(fall), fall, np.nan)
    return scores


@dataclass(frozen=True, eq=False)
class ClientCanaries:
    """Canary clients: each would send an update along one entry of the adapter vector.

    Attributes:
        entries: int64 [m], distinct.
        members: bool [m], which of them take part.
        loudness: norm of their update before clipping.
        size: length of the adapter vector.
    """

    entries: npt.NDArray[np.int64]
    members: npt.NDArray[np.bool_]
    loudness: float
    size: int

    @classmethod
    def draw(cls, count: int, size: int, loudness: float, source: NoiseSource = SYSTEM) -> ClientCanaries:
        """Distinct entries of a vector of ``size`` values.

        Raises:
            PrivacyError: more canaries than entries, or fewer than 1.
        """
        if not 1 <= count <= size:
            raise PrivacyError(f"{count} canary clients do not fit {size} entries: ask for between 1 and that.")
        entries = np.argsort(source.uniform(size), kind="stable")[:count]
        return cls(entries, source.uniform(count) < 0.5, loudness, size)

    def update(self, canary: int) -> npt.NDArray[np.float32]:
        """The update of one canary client, float32 [size]."""
        vector = np.zeros(self.size, dtype=np.float32)
        vector[self.entries[canary]] = self.loudness
        return vector

    def scores(self, released: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """From the released sum or mean of updates (or the sum of many rounds'), float64 [m]."""
        return released[self.entries].astype(np.float64)


def train_and_score(
    canaries: ExampleCanaries,
    losses: Callable[[ExampleCanaries], Tensor],
    train: Callable[[npt.NDArray[np.int64]], None],
) -> npt.NDArray[np.float64]:
    """Losses before, training with the members among the examples, losses after.

    Args:
        canaries: with their coins.
        losses: losses [m] of all canaries under the model as it is.
        train: trains the model, by the mechanism under audit, with these canaries (indices of members) added to its
            data.
    """
    with torch.no_grad():
        before = losses(canaries)
    train(np.flatnonzero(canaries.members))
    with torch.no_grad():
        return loss_scores(before, losses(canaries))
