"""Side terms: a low-rank correction of a frozen, quantized weight that stands beside it, never inside it.

FedEx-LoRA and FLoRA move the base weight each round. A quantized base is read-only (writing to it would
requantize, and lose the correction to rounding), so the correction is kept as two factors: a layer computes
``W x + scaling B A x + side.B (side.A x)``. The scaling is already folded into ``side.B``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from strategies.lowrank import Factors, recompress

_PREFIX = "side."


@dataclass(frozen=True)
class SideTerm:
    """One layer's correction: ``a`` is [k, in], ``b`` is [out, k], both float32; delta W = b a, unscaled."""

    a: npt.NDArray[np.float32]
    b: npt.NDArray[np.float32]


def read_side(arrays: Mapping[str, npt.NDArray[np.float32]]) -> dict[str, SideTerm]:
    """The side terms by module in strategy or broadcast arrays ("side.<module>.A" and ".B"); {} when none."""
    modules = [name[len(_PREFIX) : -2] for name in arrays if name.startswith(_PREFIX) and name.endswith(".A")]
    return {m: SideTerm(arrays[f"{_PREFIX}{m}.A"], arrays[f"{_PREFIX}{m}.B"]) for m in modules}


def write_side(terms: Mapping[str, SideTerm]) -> dict[str, npt.NDArray[np.float32]]:
    """What :func:`read_side` reads; terms of rank 0 are left out."""
    arrays: dict[str, npt.NDArray[np.float32]] = {}
    for module, term in terms.items():
        if term.a.shape[0]:
            arrays[f"{_PREFIX}{module}.A"] = term.a
            arrays[f"{_PREFIX}{module}.B"] = term.b
    return arrays


def grow(old: SideTerm | None, factors: Factors, cap: int) -> SideTerm:
    """The old term plus the products of ``factors``, refactored to the smallest rank that holds the sum.

    Args:
        old: the term before; None is zero.
        factors: pairs (b, a), each b [out, k] with every scale and weight folded in, each a [k, in].
        cap: largest rank to keep (the best approximation of that rank); 0 keeps the sum to float32 precision.
    """
    parts = list(factors)
    if old is not None:
        parts.append((old.b, old.a))
    b, a = recompress(parts, cap)
    return SideTerm(a, b)
