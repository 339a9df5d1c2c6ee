"""AdapterSpec: an ordered set of named float32 tensors, and the one flat vector they live in.

Federation, clipping, noise, masking and compression act on the contiguous vector; strategies look
at it through views by name. The spec is made once, hashed, and checked at both ends.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from umbel.errors import AdapterError

Vector = npt.NDArray[np.float32]
"""One-dimensional, contiguous, float32."""

_A = ".lora_A.weight"
_B = ".lora_B.weight"


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, shape and place of one tensor in the flat vector.

    ``offset`` counts float32 values, not bytes.
    """

    name: str
    shape: tuple[int, ...]
    offset: int

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class LoraShape:
    """Rank and scale of the LoRA factors of one client (Hu et al. 2021, section 4.1).

    Attributes:
        rank: r, at least 1.
        alpha: the numerator of the scale.
        rslora: divide by sqrt(r) (Kalajdzievski 2023) instead of r.
    """

    rank: int
    alpha: float
    rslora: bool = False

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise AdapterError(f"LoRA rank {self.rank} is not positive: use a rank of at least 1.")

    @property
    def scaling(self) -> float:
        """The factor of B A in the adapted weight: alpha/r, or alpha/sqrt(r) for rsLoRA."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


@dataclass(frozen=True, slots=True)
class LoraPair:
    """The two factors of one adapted linear: A is [r, in], B is [out, r]; delta W = scaling B A."""

    module: str
    a: TensorSpec
    b: TensorSpec

    @property
    def rank(self) -> int:
        """r, the first dimension of A."""
        return self.a.shape[0]


@dataclass(frozen=True)
class AdapterSpec:
    """The ordered set of named tensors that a client trains, and its LoRA shape.

    Tensors are laid out in the order given, without gaps. Two specs are the same exactly when
    their hashes are the same; the hash covers names, shapes, order, rank, alpha and rsLoRA.
    """

    tensors: tuple[TensorSpec, ...]
    lora: LoraShape

    def __post_init__(self) -> None:
        offset, seen = 0, set()
        for tensor in self.tensors:
            if tensor.name in seen:
                raise AdapterError(f"Tensor {tensor.name!r} stands twice in the adapter: names must be unique.")
            if tensor.offset != offset:
                raise AdapterError(
                    f"Tensor {tensor.name!r} starts at {tensor.offset}, expected {offset}: build specs with "
                    "AdapterSpec.from_shapes, which lays tensors out without gaps."
                )
            seen.add(tensor.name)
            offset += tensor.size

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, tuple[int, ...]], lora: LoraShape) -> AdapterSpec:
        """Lays out tensors in the mapping's own order."""
        tensors, offset = [], 0
        for name, shape in shapes.items():
            tensors.append(TensorSpec(name, tuple(int(n) for n in shape), offset))
            offset += tensors[-1].size
        return cls(tuple(tensors), lora)

    @cached_property
    def size(self) -> int:
        """Number of float32 values of the flat vector."""
        return sum(tensor.size for tensor in self.tensors)

    @cached_property
    def by_name(self) -> dict[str, TensorSpec]:
        """Tensors by name."""
        return {tensor.name: tensor for tensor in self.tensors}

    @cached_property
    def pairs(self) -> tuple[LoraPair, ...]:
        """The LoRA factor pairs, in the order in which their A stands in the vector."""
        found = []
        for tensor in self.tensors:
            if tensor.name.endswith(_A):
                module = tensor.name[: -len(_A)]
                b = self.by_name.get(module + _B)
                if b is not None:
                    found.append(LoraPair(module, tensor, b))
        return tuple(found)

    @cached_property
    def others(self) -> tuple[TensorSpec, ...]:
        """Tensors that are no LoRA factor (for example a projector trained in full)."""
        paired = {t.name for pair in self.pairs for t in (pair.a, pair.b)}
        return tuple(t for t in self.tensors if t.name not in paired)

    @cached_property
    def hash(self) -> str:
        """SHA-256 over the canonical JSON of the spec, in hexadecimal."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def to_json(self) -> str:
        """Canonical JSON: the same spec gives the same bytes."""
        body = {
            "lora": [self.lora.rank, float(self.lora.alpha), self.lora.rslora],
            "tensors": [[t.name, list(t.shape)] for t in self.tensors],
        }
        return json.dumps(body, separators=(",", ":"), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> AdapterSpec:
        """Reads what :meth:`to_json` wrote.

        Raises:
            AdapterError: when the text is not the JSON of a spec.
        """
        try:
            body: dict[str, Any] = json.loads(text)
            rank, alpha, rslora = body["lora"]
            shapes = {str(name): tuple(int(n) for n in shape) for name, shape in body["tensors"]}
            if len(shapes) != len(body["tensors"]):
                raise ValueError("a name stands twice")
            return cls.from_shapes(shapes, LoraShape(int(rank), float(alpha), bool(rslora)))
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise AdapterError(
                f"An adapter spec cannot be read ({error}): expected the JSON of AdapterSpec.to_json."
            ) from None

    def select(self, keep: Callable[[str], bool]) -> AdapterSpec:
        """The spec of the tensors whose name ``keep`` accepts, in the same order; the same object each time."""
        names = tuple(t.name for t in self.tensors if keep(t.name))
        if len(names) == len(self.tensors):
            return self
        found = self._selected.get(names)
        if found is None:
            chosen = set(names)
            shapes = {t.name: t.shape for t in self.tensors if t.name in chosen}
            found = self._selected[names] = self.from_shapes(shapes, self.lora)
        return found

    @cached_property
    def _selected(self) -> dict[tuple[str, ...], AdapterSpec]:
        return {}  # a strategy asks for the same few layouts for every client

    def with_rank(self, rank: int) -> AdapterSpec:
        """The same modules at another LoRA rank (alpha unchanged)."""
        shapes = {t.name: t.shape for t in self.tensors}
        for pair in self.pairs:
            shapes[pair.a.name] = (rank, *pair.a.shape[1:])
            shapes[pair.b.name] = (pair.b.shape[0], rank, *pair.b.shape[2:])
        return self.from_shapes(shapes, LoraShape(rank, self.lora.alpha, self.lora.rslora))

    def zeros(self) -> Vector:
        """A new vector of zeros."""
        return np.zeros(self.size, dtype=np.float32)

    def views(self, vector: Vector) -> dict[str, npt.NDArray[np.float32]]:
        """Views by name into ``vector``: writing to a view writes to the vector."""
        self.check_length(vector)
        return {t.name: vector[t.offset : t.offset + t.size].reshape(t.shape) for t in self.tensors}

    def flatten(self, named: Mapping[str, npt.NDArray[np.float32]]) -> Vector:
        """Copies named tensors into one new vector.

        Raises:
            AdapterError: a name is missing or unexpected, or a shape differs.
        """
        missing = [t.name for t in self.tensors if t.name not in named]
        extra = [name for name in named if name not in self.by_name]
        if missing or extra:
            raise AdapterError(
                f"Adapter tensors do not match the spec (missing {missing[:3]}, unexpected {extra[:3]}): "
                "make both sides from the same model and LoRA configuration."
            )
        vector = np.empty(self.size, dtype=np.float32)
        for tensor in self.tensors:
            value = named[tensor.name]
            if tuple(value.shape) != tensor.shape:
                raise AdapterError(
                    f"Adapter tensor {tensor.name!r} has shape {tuple(value.shape)}, expected {tensor.shape}: "
                    "make both sides from the same model and LoRA configuration."
                )
            vector[tensor.offset : tensor.offset + tensor.size] = np.asarray(value, dtype=np.float32).ravel()
        return vector

    def check_length(self, vector: Vector) -> None:
        """Raises AdapterError unless ``vector`` is 1-D float32 of :attr:`size` values."""
        if vector.ndim != 1 or vector.dtype != np.float32 or vector.shape[0] != self.size:
            raise AdapterError(
                f"An adapter vector has shape {vector.shape} and dtype {vector.dtype}, expected ({self.size},) and "
                "float32: both sides must use the same adapter spec."
            )

    def check(self, vector: Vector) -> None:
        """Raises AdapterError unless length and dtype fit and every value is finite."""
        self.check_length(vector)
        if not bool(np.isfinite(vector).all()):
            raise AdapterError(
                "An adapter vector holds a value that is not finite: lower the learning rate or find a broken batch."
            )

    def __iter__(self) -> Iterator[TensorSpec]:
        return iter(self.tensors)
