"""From one client's float32 vector and metrics to integers modulo 2^B, and from their sum back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from privacy.accounting import Event
from privacy.secagg import distributed_dp, hadamard
from privacy.secagg.coordinates import Coordinate, Coordinates
from privacy.secagg.distributed_dp import NoisePlan
from privacy.secagg.masking import Words
from privacy.secagg.planes import packed_size, signed, word_dtype
from privacy.secagg.quantize import l2_norm, quantize_into
from privacy.terms import Relation
from umbel.adapter import Vector
from umbel.errors import SecAggError

LOG_WRAP = 40.0 * math.log(2.0)
"""Where wrapping is not impossible (rotation, noise) it has probability at most 2^-40 a sum."""
WEIGHT = "weight"
"""Name of the coordinate that carries the example counts."""


@dataclass(frozen=True)
class Encoding:
    """Clip, weigh, rotate, scale, round, add noise; and the inverse for a sum.

    Without rotation and noise the sum cannot wrap, and decode(sum of encodings) differs from the sum of the
    clipped, weighted vectors by less than ``survivors / scale`` in each coordinate (root mean square at most
    sqrt(survivors / 4) / scale).

    Attributes:
        bits: B, 16, 20, 24 or 32.
        length: d, values of the model vector; at least 1.
        cohort: most clients in a sum.
        clip: c, largest L2 norm; longer vectors are scaled down to it.
        scale: s, quantization steps a unit.
        max_weight: largest example count. Above 0 each clipped vector is multiplied by weight / max_weight, which
            keeps its norm within ``clip``, and the coordinate "weight" carries the count. 0: unweighted.
        coordinates: metrics, beside the weight.
        rotate: flatten with random signs and a block Hadamard transform first.
        noise: distributed differential privacy, or None.
    """

    bits: int
    length: int
    cohort: int
    clip: float
    scale: float
    max_weight: int = 0
    coordinates: tuple[Coordinate, ...] = ()
    rotate: bool = False
    noise: NoisePlan | None = None

    def __post_init__(self) -> None:
        word_dtype(self.bits)
        if self.length < 1 or self.cohort < 1 or self.max_weight < 0:
            raise SecAggError("An encoding needs at least one value and one client, and no negative weight.")
        if not (math.isfinite(self.clip) and self.clip > 0 and math.isfinite(self.scale) and self.scale > 0):
            raise SecAggError(
                f"Clip {self.clip} and scale {self.scale} must be positive and finite: change secagg.clip."
            )
        if self.noise is not None and (self.max_weight or self.coordinates):
            raise SecAggError(
                "Noise does not cover weights and exact metric sums, so the guarantee would be void: leave both out "
                "under distributed differential privacy."
            )
        if self.noise is not None and not self.rotate:
            raise SecAggError("Distributed differential privacy needs the rotation: set rotate.")
        if self._peak(self.scale) > self._half:
            raise SecAggError(
                f"A sum of {self.cohort} clients at scale {self.scale} can wrap in {self.bits} bits: raise "
                "secagg.bits or build the encoding with Encoding.fit."
            )
        _ = self.layout

    @classmethod
    def fit(
        cls,
        bits: int,
        length: int,
        cohort: int,
        clip: float,
        *,
        max_weight: int = 0,
        coordinates: tuple[Coordinate, ...] = (),
        rotate: bool = False,
        noise: NoisePlan | None = None,
    ) -> Encoding:
        """The encoding with the finest scale whose sum cannot wrap (or only with probability 2^-40).

        Raises:
            SecAggError: the cohort is too large for the bits.
        """
        word_dtype(bits)
        half = float((1 << (bits - 1)) - 1)
        if not (math.isfinite(clip) and clip > 0):
            raise SecAggError(f"Clip {clip} must be positive and finite: change secagg.clip.")
        probe = half / clip
        for _ in range(200):
            try:
                found = cls(bits, length, cohort, clip, probe, max_weight, coordinates, rotate, noise)
            except SecAggError:
                if _peak(probe, length, cohort, clip, rotate, noise) <= half:
                    raise
                # The peak is concave increasing in the scale; shrink by the ratio, a hair more for rounding.
                over = _peak(probe, length, cohort, clip, rotate, noise)
                fixed = _peak(0.0, length, cohort, clip, rotate, noise)
                if fixed >= half:
                    break
                probe *= max(0.01, min(1.0 - 1e-9, (half - fixed) / (over - fixed) * (1.0 - 1e-12)))
            else:
                return found
        raise SecAggError(f"{cohort} clients cannot be added in {bits} bits without overflow: raise secagg.bits.")

    @property
    def _half(self) -> float:
        return float((1 << (self.bits - 1)) - 1)

    def _peak(self, scale: float) -> float:
        return _peak(scale, self.length, self.cohort, self.clip, self.rotate, self.noise)

    @cached_property
    def layout(self) -> Coordinates:
        """All coordinates: the weight first, if there is one."""
        weight = (Coordinate(WEIGHT, float(self.max_weight)),) if self.max_weight else ()
        return Coordinates((*weight, *self.coordinates), self.bits, self.cohort)

    @property
    def model_width(self) -> int:
        """Words of the model vector: ``length``, padded to whole blocks when rotated."""
        return hadamard.padded(self.length) if self.rotate else self.length

    @property
    def width(self) -> int:
        """Words of the masked vector."""
        return self.model_width + self.layout.width

    @property
    def wire_bytes(self) -> int:
        """Bytes of the masked vector."""
        return packed_size(self.width, self.bits)

    def event(self, relation: Relation = Relation.ADD_REMOVE, steps: int = 1) -> Event:
        """What ``steps`` unmasked sums cost under distributed differential privacy.

        Raises:
            SecAggError: there is no noise, so there is no guarantee.
        """
        if self.noise is None:
            raise SecAggError("This encoding adds no noise: choose parameters with a noise multiplier.")
        return self.noise.event(self.model_width, self.clip, self.scale, relation=relation, steps=steps)

    def zeros(self) -> Words:
        """A new accumulator."""
        return np.zeros(self.width, dtype=word_dtype(self.bits))

    def encode(self, values: Vector, metrics: Mapping[str, float], weight: float, seed: bytes) -> Words:
        """One client's integers, before masking.

        Args:
            values: float32 of ``length`` finite values.
            metrics: one number for each of ``coordinates``, by name.
            weight: example count, cut to ``max_weight`` and rounded to an integer; ignored when unweighted.
            seed: the round's context, for the signs of the rotation.

        Raises:
            SecAggError: wrong length or dtype, a value that is not finite, or metrics that do not fit.
        """
        if values.ndim != 1 or values.dtype != np.float32 or len(values) != self.length:
            raise SecAggError(
                f"The vector to mask has shape {values.shape} and dtype {values.dtype}, expected ({self.length},) and "
                "float32: both sides must use the same adapter spec."
            )
        if not (math.isfinite(weight) and weight >= 0):
            raise SecAggError(f"The weight {weight} is not a number of examples: give 0 or more.")
        norm = l2_norm(values)
        if not math.isfinite(norm):
            raise SecAggError(
                "The vector to mask holds a value that is not finite: lower the learning rate or find a broken batch."
            )
        count = min(round(weight), self.max_weight)
        factor = min(1.0, self.clip / norm) if norm > 0 else 1.0
        if self.max_weight:
            factor *= count / self.max_weight
        words = np.empty(self.width, dtype=word_dtype(self.bits))
        self._encode_model(words[: self.model_width], values, factor, seed)
        named = {**metrics, WEIGHT: float(count)} if self.max_weight else dict(metrics)
        np.copyto(words[self.model_width :], self.layout.pack(named), casting="unsafe")
        return words

    def _encode_model(self, words: Words, values: Vector, factor: float, seed: bytes) -> None:
        bound = min(self.clip * self.scale * (1.0 + 1e-6), self._half - 1.0)
        if not self.rotate:
            quantize_into(words, values, factor * self.scale, bound)
            return
        rotated = hadamard.rotate(values * np.float32(factor), seed)
        if self.noise is None:
            quantize_into(words, rotated, self.scale, bound)
            return
        # float32 rounding may leave the norm a hair above the clip, and the sensitivity is a promise.
        norm = float(np.linalg.norm(rotated.astype(np.float64)))
        scale = self.scale * min(1.0, self.clip / norm if norm > 0 else 1.0)
        integers = distributed_dp.conditional_round(rotated, scale, self.clip * self.scale / scale)
        integers += self.noise.draw(len(integers), self.clip, self.scale)
        np.copyto(words, integers, casting="unsafe")

    def decode(self, words: Words, survivors: int, seed: bytes) -> tuple[npt.NDArray[np.float64], dict[str, float]]:
        """The sum of the survivors' vectors (float64, ``length`` values) and of their metrics by name.

        A weighted sum is in units of ``max_weight``: the weighted mean is sum * max_weight / metrics["weight"].
        """
        total = signed(words[: self.model_width], self.bits).astype(np.float64)
        total /= self.scale
        if self.rotate:
            total = hadamard.unrotate(total, self.length, seed)
        return total, self.layout.unpack(signed(words[self.model_width :], self.bits), survivors)


def _peak(scale: float, length: int, cohort: int, clip: float, rotate: bool, noise: NoisePlan | None) -> float:
    """The largest absolute value, in steps, that a coordinate of the sum takes (with probability 1 - 2^-40)."""
    if not rotate:
        return cohort * (scale * clip * (1.0 + 1e-6) + 1.0)
    parts = LOG_WRAP + (math.log(2.0) if noise else 0.0)
    peak = cohort * (scale * hadamard.coordinate_bound(length, clip, parts) + 1.0)
    if noise is not None:
        variance = cohort * noise.local_variance(clip, scale)
        peak += distributed_dp.tail(variance, parts + math.log(2.0 * hadamard.padded(length)))
    return peak
