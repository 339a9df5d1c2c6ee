"""Soft tokens before a language model: trained embeddings (a prompt) or trained keys and values (a prefix).

PEFT's own prompt and prefix tuning hand ``inputs_embeds`` to the whole model, which then never sees its images. Here
they enter where the language model of a vision-language model begins, after image tokens have taken their places.
"""

from __future__ import annotations

import inspect
import weakref
from typing import Any

import torch
from torch import Tensor, nn

from mllm.parts import find_parts
from umbel.errors import ModelError

_INSTEAD = "set lora.method to lora, or leave out --tuning-steps where an answer was asked for."


class SoftTokens(nn.Module):
    """P soft tokens and the hook that puts them before every sequence.

    The text keeps its places in the output. Positions count the soft tokens first and skip padding on either side.
    A cache of past keys holds them like any other token: it must be empty when a sequence begins.

    Attributes:
        kind: ``prompt`` (Lester et al. 2021): ``embeddings`` [P, width]; or ``prefix`` (Li and Liang 2021, without
            its reparametrisation): ``keys`` and ``values`` [layers, P, heads, head width].
    """

    def __init__(self, kind: str, tokens: int, text: Any) -> None:
        super().__init__()
        self.kind, self.tokens = kind, tokens
        self._begun: weakref.ref[Any] | None = None
        self._longer = False
        if kind == "prompt":
            self.embeddings = nn.Parameter(torch.zeros(tokens, int(text.hidden_size)))
            return
        heads = int(getattr(text, "num_key_value_heads", None) or text.num_attention_heads)
        size = int(getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)
        shape = (int(text.num_hidden_layers), tokens, heads, size)
        self.keys = nn.Parameter(torch.zeros(shape))
        self.values = nn.Parameter(torch.zeros(shape))

    def enter(self, _module: nn.Module, inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Forward pre-hook of the language model."""
        from transformers import DynamicCache

        past = kwargs.get("past_key_values")
        embeds: Tensor | None = kwargs.get("inputs_embeds")
        if embeds is None or not (past is None or isinstance(past, DynamicCache)):
            raise ModelError(
                "Soft tokens need inputs_embeds and, if any, a dynamic cache: call the whole model, or pass "
                "use_cache=False."
            )
        n, length = embeds.shape[:2]
        seen = 0 if past is None else past.get_seq_length()
        if seen and (self._begun is None or self._begun() is not past):
            raise ModelError("This cache began without the soft tokens: give an empty one, or pass use_cache=False.")
        mask = kwargs.get("attention_mask")
        if mask is None:
            mask = torch.ones(n, max(seen - self.tokens, 0) + length, dtype=torch.int64, device=embeds.device)
        if not isinstance(mask, Tensor) or mask.ndim != 2:
            raise ModelError(
                f"Soft tokens cannot lengthen the finished attention masks that a language model is given: {_INSTEAD}"
            )
        changed = dict(kwargs)
        changed["attention_mask"] = torch.cat([mask.new_ones(n, self.tokens), mask], dim=1)
        places = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -length:] + self.tokens
        changed["position_ids"] = places
        changed["use_cache"] = past is not None
        self._longer = not seen and self.kind == "prompt"
        if seen:
            return inputs, changed
        self._begun = None if past is None else weakref.ref(past)
        if self._longer:
            front = self.embeddings.to(embeds.dtype).expand(n, -1, -1)
            changed["inputs_embeds"] = torch.cat([front, embeds], dim=1)
            own = torch.arange(self.tokens, device=embeds.device).expand(n, -1)
            changed["position_ids"] = torch.cat([own, places], dim=1)
        else:
            cache = DynamicCache() if past is None else past
            for number, (key, value) in enumerate(zip(self.keys, self.values, strict=True)):
                parts = (part.to(embeds.dtype).transpose(0, 1).expand(n, -1, -1, -1) for part in (key, value))
                cache.update(*parts, number)
            changed["past_key_values"] = cache
        return inputs, changed

    def leave(self, _module: nn.Module, _inputs: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """Forward hook of the language model: the prompt's own places are cut off again."""
        if not kwargs.get("use_cache"):
            output["past_key_values"] = None  # a prefix alone, which nobody asked for
        if self._longer:
            name = "logits" if "logits" in output else "last_hidden_state"
            own = kwargs["inputs_embeds"].shape[1] - self.tokens
            output[name] = output[name][:, -own:]  # fewer are there already where logits_to_keep says so
        return output


def attach_soft_tokens(model: Any, kind: str, tokens: int) -> tuple[SoftTokens, list[Any]]:
    """Puts soft tokens (zeros) before the language model of ``model``, and returns them with the hooks' handles.

    Raises:
        ModelError: the language model counts positions in several dimensions, has no attention, or is given finished
            attention masks.
    """
    text = getattr(model.config, "text_config", None)
    rope = getattr(text, "rope_parameters", None) or {}
    if text is None or "mrope_section" in rope:
        raise ModelError(
            f"{type(model).__name__} has positions of several dimensions, which soft tokens would break: {_INSTEAD}"
        )
    if not hasattr(text, "num_attention_heads"):
        raise ModelError(f"The {text.model_type} language model has no attention for a {kind}: {_INSTEAD}")
    if "token_type_ids" in inspect.signature(model.forward).parameters:
        # Gemma 3 and PaliGemma: images see themselves whole, so the mask is made before the language model begins.
        raise ModelError(
            f"The family {model.config.model_type} gives its language model finished attention masks, in which soft "
            f"tokens have no place: {_INSTEAD}"
        )
    (path,) = find_parts(model)["language"]
    language = model.get_submodule(path)
    soft = SoftTokens(kind, tokens, text)
    handles = [
        language.register_forward_pre_hook(soft.enter, with_kwargs=True),
        language.register_forward_hook(soft.leave, with_kwargs=True),
    ]
    return soft, handles
