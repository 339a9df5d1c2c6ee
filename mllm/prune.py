"""Pruning a frozen base before it is quantized: single weights by magnitude, or whole groups of attention heads.

Pruning looks at the weights alone, so every site that loads the same checkpoint prunes the same ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.utils import prune

from mllm.parts import find_parts, linear_sites
from umbel.errors import ModelError

_INPUTS = ("q_proj", "k_proj", "v_proj")
_OUTPUTS = ("o_proj", "dense")
"""Names of the output projection: Llama's and most others', Phi's."""


@dataclass(frozen=True, slots=True)
class PruneReport:
    """What was removed: ``zeroed`` weights of ``looked_at``, or ``heads`` query heads of ``all_heads``."""

    looked_at: int = 0
    zeroed: int = 0
    heads: int = 0
    all_heads: int = 0


def prune_magnitude(model: Any, share: float) -> PruneReport:
    """Sets the smallest ``share`` of each linear layer's weights to zero (Han et al. 2015), in place.

    Acts on linears of tower and language model; heads, embeddings and the projector stay. Every quantization here
    stores 0 exactly, so what was pruned stays 0. Bytes stay the same: what is saved is what a sparse format would save.

    Args:
        model: unquantized.
        share: in (0, 1).

    Raises:
        ModelError: the share is outside (0, 1).
    """
    _check(share)
    looked_at = zeroed = 0
    for site in linear_sites(model):
        if site.exempt or site.part == "projector":
            continue
        prune.l1_unstructured(site.module, "weight", amount=share)  # type: ignore[no-untyped-call]
        prune.remove(site.module, "weight")  # type: ignore[no-untyped-call]
        looked_at += site.module.weight.numel()
        zeroed += int((site.module.weight == 0).sum())
    return PruneReport(looked_at, zeroed)


def prune_heads(model: Any, share: float) -> PruneReport:
    """Removes whole groups of attention heads from every layer of the language model, in place.

    A group is one key-value head with the query heads that read it. The groups with the smallest part of the output
    projection (L2 norm of its columns; structured pruning after Michel et al. 2019) go, rounded down, and at least one
    stays. Their rows and columns are cut out, so that layers get smaller and faster.

    Args:
        model: unquantized.
        share: of the groups of each layer, in (0, 1).

    Raises:
        ModelError: the share is outside (0, 1), or the language model's attention has other projections.
    """
    _check(share)
    paths = find_parts(model)["language"]
    layers: list[Any] = [
        module
        for path, module in model.named_modules()
        if any(path.startswith(p + ".") for p in paths)
        and all(hasattr(module, name) for name in _INPUTS)
        and _output(module)
    ]
    # An attention that remembers its number of heads reshapes by it and cannot lose some.
    usable = [
        one for one in layers if isinstance(getattr(one, "head_dim", None), int) and not hasattr(one, "num_heads")
    ]
    if not usable or len(usable) != len(layers):
        raise ModelError(
            f"The language model of {type(model).__name__} has no attention of q_proj, k_proj, v_proj and o_proj or "
            "dense that can lose heads: use model.prune=magnitude."
        )
    gone = every = 0
    for attention in usable:
        size, heads = attention.head_dim, attention.q_proj.out_features // attention.head_dim
        groups = attention.k_proj.out_features // size
        each = heads // groups
        drop = min(int(groups * share), groups - 1)
        weight = getattr(attention, _output(attention)).weight
        norms = weight.detach().float().unflatten(1, (groups, each * size)).square().sum(dim=(0, 2))
        kept = norms.argsort(descending=True, stable=True)[: groups - drop].sort().values
        _cut(attention, kept, groups, each * size, size)
        gone += drop * each
        every += heads
    if not gone:
        raise ModelError(
            f"model.prune-share {share} removes no group of heads (a layer has {every // len(usable)} heads): raise it."
        )
    return PruneReport(heads=gone, all_heads=every)


def _cut(attention: Any, kept: torch.Tensor, groups: int, wide: int, size: int) -> None:
    mask = torch.zeros(groups, wide)
    mask[kept] = 1
    name = _output(attention)
    output = getattr(attention, name)
    # First masked, as torch.nn.utils.prune defines structured pruning, then cut where the mask is 0.
    flat = mask.flatten().expand_as(output.weight)
    prune.custom_from_mask(output, "weight", flat)  # type: ignore[no-untyped-call]
    prune.remove(output, "weight")  # type: ignore[no-untyped-call]
    query = torch.arange(groups * wide).view(groups, wide)[kept].flatten()
    key = torch.arange(groups * size).view(groups, size)[kept].flatten()
    attention.q_proj = _rows(attention.q_proj, query)
    attention.k_proj, attention.v_proj = _rows(attention.k_proj, key), _rows(attention.v_proj, key)
    made = nn.Linear(len(query), output.out_features, bias=output.bias is not None, dtype=output.weight.dtype)
    made.weight.data, made.bias = output.weight.detach()[:, query].clone(), output.bias
    setattr(attention, name, made)


def _output(attention: Any) -> str:
    return next((name for name in _OUTPUTS if hasattr(attention, name)), "")


def _rows(linear: nn.Linear, rows: torch.Tensor) -> nn.Linear:
    made = nn.Linear(linear.in_features, len(rows), bias=linear.bias is not None, dtype=linear.weight.dtype)
    made.weight.data = linear.weight.detach()[rows].clone()
    if linear.bias is not None:
        made.bias.data = linear.bias.detach()[rows].clone()
    return made


def _check(share: float) -> None:
    if not 0 < share < 1:
        raise ModelError(f"A share of {share} cannot be pruned: choose one above 0 and below 1.")
