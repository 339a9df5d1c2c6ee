"""Which modules of a vision-language model belong to its vision tower, projector and language model.

Works on module paths, so it holds for the composed model and for what AutoModelForImageTextToText loads.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from umbel.errors import ModelError

Part = Literal["language", "vision", "projector"]
PARTS: tuple[Part, ...] = ("language", "vision", "projector")

_NAMES: dict[str, Part] = {
    "language_model": "language",
    "text_model": "language",
    "vision_tower": "vision",
    "vision_model": "vision",
    "vision_encoder": "vision",
    "visual": "vision",
    "projector": "projector",
    "multi_modal_projector": "projector",
    "mm_projector": "projector",
    "connector": "projector",
    "aligner": "projector",
    "qformer": "projector",
    "language_projection": "projector",
}
# Some towers carry their projector inside them (Qwen2-VL's `visual.merger`).
_INSIDE_VISION = ("merger", "patch_merger", "deepstack_merger_list")
# Pooling and classification heads of a tower: no image token passes through them.
_UNUSED = re.compile(r"(^|\.)(head|pooler|classifier)(\.|$)")
_LAYER = re.compile(r"(?:^|\.)(?:layers?|blocks)\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class LinearSite:
    """A linear layer: its full module path, its part, and why it should be left alone ("" if it should not)."""

    path: str
    part: Part
    module: nn.Linear
    exempt: str


def find_parts(model: nn.Module) -> dict[Part, tuple[str, ...]]:
    """Module paths of each part of ``model``.

    Raises:
        ModelError: there is no language model or no vision tower under a known name.
    """
    found: dict[Part, list[str]] = {part: [] for part in PARTS}
    for path, _ in model.named_modules():
        steps = path.split(".")
        # Only the outermost match counts: a SigLIP tower has a `vision_model` of its own inside.
        if len(steps) <= 2 and steps[-1] in _NAMES and (len(steps) == 1 or steps[0] not in _NAMES):
            found[_NAMES[steps[-1]]].append(path)
    if not found["language"] or not found["vision"]:
        children = ", ".join(name for name, _ in model.named_children())
        raise ModelError(
            f"{type(model).__name__} has no language model and vision tower under a known name (it has {children}): "
            "use a vision-language model that AutoModelForImageTextToText loads."
        )
    inside = [f"{tower}.{name}" for tower in found["vision"] for name in _INSIDE_VISION]
    paths = {path for path, _ in model.named_modules()}
    found["projector"] += [path for path in inside if path in paths]
    return {part: tuple(found[part]) for part in PARTS}


def part_of(path: str, parts: dict[Part, tuple[str, ...]]) -> Part | None:
    """The part that the module at ``path`` belongs to; the longest matching prefix wins."""
    best: tuple[int, Part | None] = (-1, None)
    for part, prefixes in parts.items():
        for prefix in prefixes:
            if (path == prefix or path.startswith(prefix + ".")) and len(prefix) > best[0]:
                best = (len(prefix), part)
    return best[1]


def linear_sites(model: Any) -> list[LinearSite]:
    """Every linear layer inside the three parts, quantized or not, in module order.

    The head is exempt (its weight is often the embedding's), as are the insides of attention modules of
    PyTorch (they read weights directly) and layers that no image token passes through.
    """
    parts = find_parts(model)
    head = model.get_output_embeddings()
    multihead = tuple(p + "." for p, m in model.named_modules() if isinstance(m, nn.MultiheadAttention))
    used = _layers_used(model, parts)
    sites = []
    for path, module in model.named_modules():
        part = part_of(path, parts)
        if part is None or not isinstance(module, nn.Linear):  # quantized linears derive from it
            continue
        exempt = ""
        if module is head or path.endswith("lm_head"):
            exempt = "output head"
        elif multihead and path.startswith(multihead):
            exempt = "inside torch.nn.MultiheadAttention"
        elif off_the_way(path, parts):
            exempt = "not on the way of image tokens"
        elif part == "vision" and _above(path, used):
            exempt = "above vision_feature_layer"
        elif path.endswith(".dt_proj"):
            exempt = "its weight is read directly by Mamba's scan"
        sites.append(LinearSite(path, part, module, exempt))
    return sites


def off_the_way(path: str, parts: dict[Part, tuple[str, ...]]) -> bool:
    """Whether ``path`` lies in a pooling or classification head of the vision tower, which no image token passes."""
    return part_of(path, parts) == "vision" and _UNUSED.search(path) is not None


def suffixes(sites: Iterable[LinearSite]) -> list[str]:
    """The last names of linears, each once, sorted: what a user may write in ``lora.modules``."""
    return sorted({site.path.rpartition(".")[2] for site in sites})


def _above(path: str, used: dict[str, int]) -> bool:
    """Whether ``path`` lies in a layer of a tower behind the hidden state that is read."""
    for tower, count in used.items():
        if path.startswith(tower + "."):
            match = _LAYER.search(path[len(tower) :])
            return match is not None and int(match.group(1)) >= count
    return False


def _layers_used(model: Any, parts: dict[Part, tuple[str, ...]]) -> dict[str, int]:
    """How many layers of each vision tower are used, by the tower's path."""
    composed = getattr(model.config, "layers_used", None)
    if composed is not None:
        return {".".join(filter(None, (parts["vision"][0], path))): count for path, count in composed.items()}
    layer = getattr(model.config, "vision_feature_layer", None)
    depth = getattr(getattr(model.config, "vision_config", None), "num_hidden_layers", None)
    if not isinstance(layer, int) or not isinstance(depth, int):
        return {}
    # hidden_states has depth + 1 entries; entry k is the output of layer k - 1.
    return dict.fromkeys(parts["vision"], depth + 1 + layer if layer < 0 else layer)
