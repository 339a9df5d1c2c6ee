"""Side terms: a low-rank correction of a frozen, quantized weight that stands beside it, never inside it.

FedEx-LoRA and FLoRA move the base weight each round. A quantized base is read-only (writing to it would
requantize, and lose the correction to rounding), so the correction is kept as two factors: a layer computes
``W x + scaling B A x + side.B (side.A x)``. The scaling is already folded into ``side.B``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from umbel.adapter import AdapterSpec, LoraShape, Vector
from umbel.errors import AdapterError

_PREFIX = "side."


@dataclass(frozen=True)
class SideTerm:
    """One layer's correction: ``a`` is [k, in], ``b`` is [out, k], both float32; delta W = b a, unscaled."""

    a: npt.NDArray[np.float32]
    b: npt.NDArray[np.float32]

    def check(self, module: str, outputs: int, inputs: int) -> None:
        """Raises AdapterError unless the factors are finite and fit a layer of [outputs, inputs]."""
        if (
            self.a.ndim != 2
            or self.b.ndim != 2
            or self.a.shape != (self.b.shape[1], inputs)
            or self.b.shape[0] != outputs
        ):
            raise AdapterError(
                f"The side term of {module} has shapes {self.b.shape} and {self.a.shape}, expected ({outputs}, k) and "
                f"(k, {inputs}): both ends must use the same model."
            )
        if not (np.isfinite(self.a).all() and np.isfinite(self.b).all()):
            raise AdapterError(f"The side term of {module} holds a value that is not finite: lower the learning rate.")


def read_side(arrays: Mapping[str, npt.NDArray[np.float32]]) -> dict[str, SideTerm]:
    """The side terms by module in strategy or broadcast arrays ("side.<module>.A" and ".B"); {} when none.

    Raises:
        AdapterError: one factor of a pair is missing.
    """
    modules = sorted({name[len(_PREFIX) : -2] for name in arrays if name.startswith(_PREFIX)})
    for module in modules:
        if f"{_PREFIX}{module}.A" not in arrays or f"{_PREFIX}{module}.B" not in arrays:
            raise AdapterError(f"The side term of {module} lacks a factor: both ends must run the same umbel.")
    return {m: SideTerm(arrays[f"{_PREFIX}{m}.A"], arrays[f"{_PREFIX}{m}.B"]) for m in modules}


def write_side(terms: Mapping[str, SideTerm]) -> dict[str, npt.NDArray[np.float32]]:
    """What :func:`read_side` reads; terms of rank 0 are left out."""
    arrays: dict[str, npt.NDArray[np.float32]] = {}
    for module, term in terms.items():
        if term.a.shape[0]:
            arrays[f"{_PREFIX}{module}.A"] = term.a
            arrays[f"{_PREFIX}{module}.B"] = term.b
    return arrays


def fold_side(spec: AdapterSpec, vector: Vector, terms: Mapping[str, SideTerm]) -> tuple[AdapterSpec, Vector]:
    """One ordinary LoRA adapter of a larger rank that equals the factors and the side terms together.

    A' = [A; side.A; 0] and B' = [B, side.B / s, 0], so that s B' A' = s B A + side.B side.A: exact up to the rounding
    of the division. The rank is that of the factors plus the largest side term's, the same in every layer, and alpha
    grows with it so that s stays alpha/r (or alpha/sqrt(r)).

    Args:
        spec: of ``vector``.
        vector: the factors.
        terms: by module, as in ``spec.pairs``; without any, ``spec`` and ``vector`` come back.

    Raises:
        AdapterError: a term does not fit its layer or belongs to none.
    """
    pairs = {pair.module: pair for pair in spec.pairs}
    for module, term in terms.items():
        if module not in pairs:
            raise AdapterError(f"A side term belongs to {module}, which has no LoRA factors: use the same targets.")
        term.check(module, pairs[module].b.shape[0], pairs[module].a.shape[1])
    extra = max((term.a.shape[0] for term in terms.values()), default=0)
    if not extra:
        return spec, vector
    lora, rank = spec.lora, spec.lora.rank + extra
    grown = rank / lora.rank
    wider = spec.with_rank(rank)
    shape = LoraShape(rank, lora.alpha * (math.sqrt(grown) if lora.rslora else grown), lora.rslora)
    folded = AdapterSpec.from_shapes({t.name: t.shape for t in wider}, shape)
    source, result = spec.views(vector), folded.zeros()
    views = folded.views(result)
    for tensor in spec.others:
        views[tensor.name][...] = source[tensor.name]
    for module, pair in pairs.items():
        r = pair.rank
        views[pair.a.name][:r], views[pair.b.name][:, :r] = source[pair.a.name], source[pair.b.name]
        if module in terms:
            a, b = terms[module].a, terms[module].b
            views[pair.a.name][r : r + a.shape[0]] = a
            views[pair.b.name][:, r : r + a.shape[0]] = b / np.float32(shape.scaling)
    return folded, result


def unfold_side(
    spec: AdapterSpec, tensors: Mapping[str, npt.NDArray[np.float32]]
) -> tuple[Vector, dict[str, SideTerm]]:
    """The factors and side terms in an adapter that :func:`fold_side` made for ``spec``.

    Raises:
        AdapterError: the tensors are not those of ``spec``, at its rank or a larger one.
    """
    first = next(iter(spec.pairs), None)
    stored = tensors.get(first.a.name) if first is not None else None
    rank = int(stored.shape[0]) if stored is not None and stored.ndim == 2 else spec.lora.rank
    if first is None or rank <= spec.lora.rank:
        return spec.flatten(tensors), {}
    wide = spec.with_rank(rank)
    whole, vector, terms = wide.views(wide.flatten(tensors)), spec.zeros(), {}
    views = spec.views(vector)
    for tensor in spec.others:
        views[tensor.name][...] = whole[tensor.name]
    for pair in spec.pairs:
        a, b, r = whole[pair.a.name], whole[pair.b.name], pair.rank
        views[pair.a.name][...], views[pair.b.name][...] = a[:r], b[:, :r]
        terms[pair.module] = SideTerm(a[r:].copy(), b[:, r:] * np.float32(spec.lora.scaling))
    return vector, terms
