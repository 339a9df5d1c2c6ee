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
