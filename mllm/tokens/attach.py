"""Putting a method of token reduction on a base: the projector's output, processor and collator agree."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from mllm.parts import find_parts
from mllm.processing import ComposedProcessor
from mllm.tokens.layers import LayerDrop
from mllm.tokens.merge import REDUCERS
from umbel.errors import ModelError

METHODS = (*REDUCERS, "fastv", "withdraw")
_FAMILIES = ("umbel_vlm", "llava", "vipllava", "internvl")
"""Whose projector gives one row an image, and whose text holds as many placeholders."""


@dataclass(frozen=True, slots=True)
class TokenPlan:
    """What is kept.

    Attributes:
        method: one of :data:`METHODS`.
        share: of the image tokens, in (0, 1]; not read by ``withdraw``.
        layer: layers that see every token, for ``fastv`` and ``withdraw``.
    """

    method: str
    share: float = 1.0
    layer: int = 2

    def __post_init__(self) -> None:
        if self.method not in METHODS or not 0 < self.share <= 1:
            raise ModelError(
                f"Token reduction {self.method!r} with share {self.share} is unknown or impossible: choose one of "
                f"{', '.join(METHODS)} and a share above 0 and at most 1."
            )

    def kept(self, tokens: int) -> int:
        """Tokens of an image that reach the language model."""
        return max(1, math.ceil(tokens * self.share)) if self.method in REDUCERS else tokens


class AttachedTokens:
    """A method on a model; :meth:`remove` takes it off.

    Attributes:
        before: tokens of an image without it.
        kept: tokens of an image that reach the language model.
    """

    def __init__(self, before: int, kept: int, handles: list[Any], processor: Any, model: Any = None) -> None:
        self.before, self.kept = before, kept
        self._handles, self._processor, self._model = handles, processor, model

    def remove(self) -> None:
        """The model and its processor as they were."""
        for handle in self._handles:
            handle.remove()
        if self._model is not None:
            del self._model.umbel_drop
        if isinstance(self._processor, ComposedProcessor):
            self._processor.image_tokens = self.before
        else:
            self._processor.umbel_tokens = None


def attach_tokens(model: Any, processor: Any, plan: TokenPlan) -> AttachedTokens:
    """Puts ``plan`` on a base that carries no adapter yet.

    Reducers that act before the language model change what the processor (or, for a model of the hub, the collator)
    writes into the text; make collators afterwards.

    Raises:
        ModelError: the family is not known to give one row of tokens an image, or the plan does not fit the model.
    """
    family = str(model.config.model_type)
    if family not in _FAMILIES:
        raise ModelError(
            f"Token reduction needs a model whose projector gives one row an image, and {family!r} is not known to: "
            f"use one of {', '.join(_FAMILIES)}, or set model.tokens to none."
        )
    before = _tokens_per_image(model, processor)
    if plan.method in REDUCERS:
        kept, reduce = plan.kept(before), REDUCERS[plan.method]

        def shorten(_module: nn.Module, _inputs: tuple[Any, ...], output: Tensor) -> Tensor:
            return reduce(output, kept)

        (path,) = find_parts(model)["projector"]
        handle = model.get_submodule(path).register_forward_hook(shorten)
        if isinstance(processor, ComposedProcessor):
            processor.image_tokens = kept
        else:
            processor.umbel_tokens = (_image_token(model), before, kept)
        return AttachedTokens(before, kept, [handle], processor)
    share = 0.0 if plan.method == "withdraw" else plan.share
    if share == 1.0:
        return AttachedTokens(before, before, [], processor)
    drop = LayerDrop(model.get_input_embeddings(), _layers(model), plan.layer, share, _image_token(model))
    model.umbel_drop = drop  # so that whoever generates knows that layers hold different numbers of tokens
    return AttachedTokens(before, before, [drop], processor, model)


def _image_token(model: Any) -> int:
    return int(getattr(model.config, "image_token_id", getattr(model.config, "image_token_index", -1)))


def _tokens_per_image(model: Any, processor: Any) -> int:
    if isinstance(processor, ComposedProcessor):
        return int(processor.image_tokens)
    count = getattr(model.config, "image_seq_length", None)
    if not isinstance(count, int):
        raise ModelError(
            f"{type(model).__name__} does not say how many tokens an image has (image_seq_length): set model.tokens to "
            "none."
        )
    return count


def _layers(model: Any) -> nn.ModuleList:
    paths = find_parts(model)["language"]
    for path, module in model.named_modules():
        inside = any(path == p or path.startswith(p + ".") for p in paths)
        if inside and isinstance(module, nn.ModuleList) and path.endswith("layers"):
            return module
    raise ModelError(
        f"{type(model).__name__} has no list of decoder layers: use a reduction before the language model."
    )
