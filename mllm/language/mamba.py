"""Mamba (Gu and Dao 2023): a state instead of attention."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import DynamicCache
from transformers.modeling_outputs import CausalLMOutputWithPast

from mllm.language.base import Language
from umbel.errors import ModelError


class StateCache(DynamicCache):  # type: ignore[misc]
    """The states of all layers, and how many tokens went into them: a state has no length to read it from."""

    seen = 0
    is_compileable = False
    """So that the attention mask stays what it is."""

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens seen so far."""
        return self.seen


class Mamba(Language):
    """``MambaForCausalLM``. Its LoRA targets are ``in_proj``, ``x_proj`` and ``out_proj``.

    ``dt_proj`` is read directly and takes no factors. Padding is masked out of the state, on either side.
    """

    name = "mamba"
    model_type = "mamba"
    stateful = True

    def build(self, config: Any) -> nn.Module:
        """The model, never with the fused kernel."""
        _without_fused_kernel()
        return super().build(config)

    def run(self, model: nn.Module, embeds: torch.Tensor, **arguments: Any) -> CausalLMOutputWithPast:
        """As every language model; Mamba's cache and mask have other names and lengths."""
        past = arguments.pop("past_key_values", None)
        mask = arguments.pop("attention_mask", None)
        arguments.pop("position_ids", None)
        if mask is not None and mask.shape[1] != embeds.shape[1]:
            mask = mask[:, -embeds.shape[1] :]
        found = model(inputs_embeds=embeds, cache_params=past, attention_mask=mask, **arguments)
        if isinstance(past, StateCache):
            past.seen += embeds.shape[1]
        return CausalLMOutputWithPast(
            loss=found.loss, logits=found.logits, past_key_values=found.cache_params, hidden_states=found.hidden_states
        )

    def cache(self, config: Any) -> Any:
        """States with a count of tokens."""
        return StateCache(config=config)

    def tiny(self, width: int, layers: int, vocabulary: int, tie: bool) -> Any:
        """A state of four."""
        from transformers import MambaConfig

        return MambaConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            state_size=4,
            num_hidden_layers=layers,
            time_step_rank=4,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            tie_word_embeddings=tie,
        )


def plain_mixer(config: Any) -> nn.Module:
    """One Mamba layer of transformers by itself: [n, T, width] to the same."""
    from transformers.models.mamba.modeling_mamba import MambaMixer

    _without_fused_kernel()
    mixer: nn.Module = MambaMixer(config, layer_idx=0)
    return mixer


def _without_fused_kernel() -> None:
    """Keeps transformers from the kernel that reads weights of ``x_proj`` and ``out_proj`` directly when training.

    Where the package mamba_ssm is installed it would be used, LoRA factors on these layers would be left out of the
    output and of the gradient, and nobody would be told.
    """
    from transformers.models.mamba import modeling_mamba

    if not hasattr(modeling_mamba, "mamba_inner_fn"):
        raise ModelError(
            "This version of transformers trains Mamba in a way that is not known here: install the version that "
            "umbel's requirements name."
        )
    modeling_mamba.mamba_inner_fn = _no_fused_kernel


def _no_fused_kernel(*_: Any, **__: Any) -> None:
    return None
