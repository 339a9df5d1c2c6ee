"""What the loader did to each linear layer of a base."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class QuantizedModule:
    """One quantized linear: module path, part, and bytes of its weight before (as stored) and after.

    ``backend`` is how it is stored; ``error`` is |Q(W) - W| / |W| in the Frobenius norm, W in float32 (0 for W = 0).
    """

    path: str
    part: str
    before: int
    after: int
    backend: str = ""
    error: float = 0.0


@dataclass(frozen=True, slots=True)
class ExemptModule:
    """One module with a weight that was not quantized: module path, reason, bytes of its weight."""

    path: str
    reason: str
    bytes: int


@dataclass(frozen=True, slots=True)
class QuantizationReport:
    """Module by module, what is stored how.

    Attributes:
        asked: the quantization that was asked for, perhaps ``auto``.
        backend: what ``auto`` became, of all parts that are not stored otherwise.
        device: where the weights are.
        compute: dtype of activations and of what is not quantized.
        modules: what was quantized.
        exempt: what was not, and why: heads, embeddings, convolutions, parts that were to be kept.
        bytes_before: of all weights, as the checkpoint stores them.
        bytes_after: of all weights, in memory.
    """

    asked: str
    backend: str
    device: str
    compute: str
    modules: tuple[QuantizedModule, ...]
    exempt: tuple[ExemptModule, ...]
    bytes_before: int
    bytes_after: int

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, module by module."""
        return asdict(self)

    def summary(self) -> str:
        """One sentence for a log or a table."""
        size = f"{self.bytes_before / 1e6:.1f} MB as stored, {self.bytes_after / 1e6:.1f} MB in memory"
        if not self.modules:
            return f"Not quantized ({self.backend}), {self.compute} on {self.device}, {size}."
        counts = Counter((m.part, m.backend or self.backend) for m in self.modules)
        mixed = len({backend for _, backend in counts}) > 1
        parts = ", ".join(f"{n} in {part}{f' as {kind}' if mixed else ''}" for (part, kind), n in counts.items())
        one = next(iter(counts))[1]
        return (
            f"{len(self.modules)} linear layers{'' if mixed else f' as {one}'} ({parts}), {len(self.exempt)} modules "
            f"kept, "
            f"{self.compute} on {self.device}, {size}."
        )
