"""Modality-balanced clipping of 4-bit weights, on public examples.

NF4 takes a block's scale from its largest magnitude. Clipping a block's outliers first makes the scale, and so the
rounding of all its other weights, finer (AWQ, Lin et al. 2023, appendix; OmniQuant, Shao et al. 2023). How far to clip
is what costs least in the layer's output. A plain mean over tokens would listen to image tokens alone, of which there
are many more and which matter less; MBQ (Li et al. 2024, arXiv 2412.19509, section 3) weighs the two modalities by the
sensitivity of the loss, the mean absolute gradient at the layer's output. Inside a modality a token counts by its own
squared gradient: many tokens, the last layers' above all, move no answer.

The examples must be public: a base that depends on private examples would carry them into every gradient, and no
guarantee per example would cover that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mllm.loss import per_example_loss
from mllm.parts import LinearSite, linear_sites
from mllm.quantize import Prepare
from mllm.tasks.collate import Collator
from mllm.tasks.example import Example
from umbel.errors import QuantizationError

GRID = (1.0, 0.98, 0.95, 0.9, 0.85, 0.8, 0.7)
"""Shares of a group's largest magnitude that are tried."""
BLOCK = 64
"""Weights that share a scale in bitsandbytes NF4, neighbours along the input."""
_BATCH = 8
_NF4 = (
    -1.0, -0.6961928, -0.5250730, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0,
    0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0,
)  # fmt: skip
"""The NF4 code (Dettmers et al. 2023, appendix E)."""


@dataclass
class LayerStatistics:
    """What one linear layer saw of one modality.

    Attributes:
        plain: float32 [in, in], sum over tokens of x x^T.
        moments: float32 [in, in], the same weighted by each token's squared gradient.
        weight: sum of those weights.
        gradients: sum over tokens of the mean absolute gradient of the loss at the layer's output.
        tokens: how many.
    """

    plain: Tensor
    moments: Tensor
    weight: float = 0.0
    gradients: float = 0.0
    tokens: int = 0


@dataclass
class Calibration:
    """What the layers of a model saw: by module path, then by modality (``text`` or ``image``).

    ``balanced`` weighs modalities by sensitivity; otherwise every token counts the same.
    """

    layers: dict[str, dict[str, LayerStatistics]] = field(default_factory=dict)
    balanced: bool = True

    def weighted(self, path: str) -> Tensor | None:
        """float32 [in, in]: the modalities' mean second moments, weighted; None for a layer that saw nothing.

        Where every gradient is zero all tokens count the same.
        """
        seen = [one for one in self.layers.get(path, {}).values() if one.tokens]
        if not seen:
            return None
        total = sum(one.gradients / one.tokens for one in seen)
        if not self.balanced or not total > 0:
            return torch.stack([one.plain for one in seen]).sum(dim=0) / sum(one.tokens for one in seen)
        shares = [one.gradients / one.tokens / total / max(one.weight, 1e-30) for one in seen]
        return torch.stack([one.moments * share for one, share in zip(seen, shares, strict=True)]).sum(dim=0)

    def prepare(self) -> Prepare:
        """For :func:`mllm.quantize.quantize`: each layer's weight, clipped where that costs least."""

        def weight(site: LinearSite, backend: str) -> Tensor:
            own = site.module.weight.detach().float()
            # The 255 levels of int8 are so fine that clipping costs more than it gives (measured: docs/tuning.md).
            moments = self.weighted(site.path) if backend.startswith("nf4") else None
            return own if moments is None else clipped(own, moments)

        return weight


def calibrate(
    model: Any, collator: Collator, examples: Sequence[Example], image_token: int, *, balanced: bool = True
) -> Calibration:
    """Runs public examples through the unquantized model and keeps what each linear layer saw.

    Inside the language model tokens are told apart by ``input_ids``; all rows of tower and projector are of images.
    Memory: one float32 [in, in] a layer and modality.

    Args:
        model: unquantized, on the CPU; its parameters and mode are as before afterwards.
        collator: of the model.
        examples: public ones, with answers.
        image_token: id of the placeholder.
        balanced: see :class:`Calibration`.

    Raises:
        QuantizationError: there are no examples.
    """
    if not examples:
        raise QuantizationError("A calibration needs public examples: give some, or set model.calibration to none.")
    found = Calibration(balanced=balanced)
    sites = [site for site in linear_sites(model) if not site.exempt]
    state: dict[str, Tensor] = {}
    was, needed = model.training, [p.requires_grad for p in model.parameters()]
    model.eval().requires_grad_(False)
    embeddings = model.get_input_embeddings()
    with ExitStack() as stack:
        # Gradients must reach every layer: they start at the embeddings and at the pixels.
        handle = embeddings.register_forward_hook(lambda _m, _i, out: out.detach().requires_grad_())
        stack.callback(handle.remove)
        for site in sites:
            seen = found.layers.setdefault(site.path, {})
            stack.callback(site.module.register_forward_hook(_watch(seen, state, site.part == "language")).remove)
        for start in range(0, len(examples), _BATCH):
            batch = collator(examples[start : start + _BATCH])
            ids = batch.inputs["input_ids"]
            state["image"] = ids == image_token
            state["real"] = batch.inputs["attention_mask"].bool()
            inputs = dict(batch.inputs)
            if "pixel_values" in inputs and inputs["pixel_values"].is_floating_point():
                inputs["pixel_values"] = inputs["pixel_values"].clone().requires_grad_()
            with torch.enable_grad():
                losses = per_example_loss(model(**inputs, use_cache=False).logits, batch.labels)
                losses.sum().backward()  # type: ignore[no-untyped-call]
    model.train(was)
    for parameter, wanted in zip(model.parameters(), needed, strict=True):
        parameter.requires_grad_(wanted)
    return found


def _watch(seen: dict[str, LayerStatistics], state: Mapping[str, Tensor], language: bool) -> Any:
    def hook(module: nn.Linear, inputs: tuple[Any, ...], output: Tensor) -> None:
        x = inputs[0].detach()
        masks: dict[str, Tensor | None] = {"image": None}
        if language and x.shape[:2] == state["image"].shape:
            masks = {"image": state["image"] & state["real"], "text": ~state["image"] & state["real"]}
        elif language:
            masks = {"text": None}
        for name, mask in masks.items():
            rows = (x if mask is None else x[mask]).reshape(-1, x.shape[-1]).float()
            if len(rows):
                zeros = torch.zeros(x.shape[-1], x.shape[-1])
                one = seen.setdefault(name, LayerStatistics(zeros, zeros.clone()))
                one.plain += rows.t() @ rows
                one.tokens += len(rows)
        if output.requires_grad:
            output.register_hook(_measure(seen, masks, x))  # type: ignore[no-untyped-call]

    return hook


def _measure(seen: dict[str, LayerStatistics], masks: Mapping[str, Tensor | None], x: Tensor) -> Any:
    def hook(gradient: Tensor) -> None:
        for name, mask in masks.items():
            if name not in seen:
                continue
            rows, slopes = ((part if mask is None else part[mask]).reshape(-1, part.shape[-1]).float()
                            for part in (x, gradient.detach()))  # fmt: skip
            weights = slopes.square().mean(dim=-1)
            seen[name].moments += (rows * weights.unsqueeze(1)).t() @ rows
            seen[name].weight += float(weights.sum())
            seen[name].gradients += float(slopes.abs().mean(dim=-1).sum())

    return hook


def clipped(weight: Tensor, moments: Tensor) -> Tensor:
    """``weight`` with every block of :data:`BLOCK` clipped to the share of :data:`GRID` that costs least in the output.

    The cost of a group is d^T H d with d its rounding and clipping error and H its diagonal block of ``moments``.
    A share of 1 is among those tried, so the cost never rises.

    Args:
        weight: float32 [out, in].
        moments: float32 [in, in], mean of x x^T.
    """
    out, width = weight.shape
    # Blocks run through the flat weight: where they do not end with the rows, whole rows are the nearest groups.
    size = BLOCK if width % BLOCK == 0 else width
    result = weight.clone()
    for start in range(0, width, size):
        block = weight[:, start : start + size]
        h = moments[start : start + size, start : start + size]
        largest = block.abs().amax(dim=1, keepdim=True).clamp(min=1e-12)
        best = torch.full((out,), float("inf"))
        for share in GRID:
            bound = largest * share
            cut = torch.maximum(torch.minimum(block, bound), -bound)
            error = _rounded(cut, bound) - block
            cost = ((error @ h) * error).sum(dim=1)
            better = cost < best
            best = torch.where(better, cost, best)
            result[better, start : start + size] = cut[better]
    return result


def _rounded(values: Tensor, bound: Tensor) -> Tensor:
    """What NF4 makes of values in [-bound, bound]."""
    code = torch.tensor(_NF4)
    middle = (code[1:] + code[:-1]) / 2
    return code[torch.bucketize(values / bound, middle)] * bound
