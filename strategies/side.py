"""How a side term (:mod:`umbel.side`) grows from round to round."""

from __future__ import annotations

from strategies.lowrank import Factors, recompress
from umbel.side import SideTerm, read_side, write_side

__all__ = ["SideTerm", "grow", "read_side", "write_side"]


def grow(old: SideTerm | None, factors: Factors, cap: int) -> SideTerm:
    """The old term plus the products of ``factors``, refactored to the smallest rank that holds the sum.

    The rank never exceeds min(out, in) of the layer: the stacked factors are brought to a core by QR and cut at
    the sum's numerical rank, so a term that would outgrow its layer is re-compressed, exactly up to float32
    rounding. Over T rounds of K clients at rank r it is therefore at most min(out, in, T (K + 1) r).

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
