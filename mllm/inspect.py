"""How many parameters and bytes each part of a model has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mllm.backends import is_quantized, weight_bytes
from mllm.parts import PARTS, find_parts, part_of
from mllm.unwrapped import unwrapped


@dataclass(frozen=True, slots=True)
class PartSize:
    """One part of a model: values (a packed 4-bit weight counts every value), those trained, and bytes in memory."""

    part: str
    values: int
    trainable: int
    bytes: int


def part_sizes(model: Any) -> list[PartSize]:
    """Sizes of language model, vision tower, projector and the rest, each parameter once.

    Args:
        model: a vision-language model, quantized or not, without or with PEFT's wrapping.

    Raises:
        ModelError: the model has no parts under a known name.
    """
    inner = unwrapped(model)
    parts = find_parts(inner)
    sums = {name: [0, 0, 0] for name in (*PARTS, "other")}
    seen: set[int] = set()
    for path, module in inner.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen:  # tied
                continue
            seen.add(id(parameter))
            quantized = name == "weight" and hasattr(module, "in_features") and is_quantized(module)
            values = module.in_features * module.out_features if quantized else parameter.numel()
            row = sums[part_of(path, parts) or "other"]
            row[0] += values
            row[1] += values if parameter.requires_grad else 0
            row[2] += weight_bytes(parameter)
    return [PartSize(name, *row) for name, row in sums.items()]
