"""Sparse upcycling (Komatsuzaki et al. 2022) as in MoE-LLaVA (Lin et al. 2024): copies of the dense feed-forward.

A router picks ``top_k`` experts for every token by itself. There is no capacity, so the rows of a batch do not touch
each other, which a bound per example needs.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from mllm.language.base import Language, sizes
from umbel.errors import ModelError


class ExpertMlp(nn.Module):
    """Copies of a feed-forward and a linear router in float32.

    While gradients are taken every expert sees every token and the router's zeros do the choosing: a trained layer
    inside an expert then keeps the shape [n, T, ...], whose rows are known to belong to examples. Without gradients
    an expert sees its own tokens only.
    """

    def __init__(self, dense: nn.Module, experts: int, top_k: int, width: int) -> None:
        super().__init__()
        self.top_k = top_k
        self.experts = nn.ModuleList(copy.deepcopy(dense) for _ in range(experts))
        # No linear layer: routing is neither quantized nor given LoRA factors.
        self.router = nn.Parameter(torch.empty(experts, width))
        nn.init.normal_(self.router, std=0.02)
        self.probabilities: torch.Tensor | None = None
        self.recording = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[n, T, width] to the same."""
        probabilities = functional.linear(x.float(), self.router.float()).softmax(-1)
        if self.recording:
            self.probabilities = probabilities
        best, chosen = probabilities.topk(self.top_k, dim=-1)
        best = best / best.sum(-1, keepdim=True)
        weights = torch.zeros_like(probabilities).scatter(-1, chosen, best).to(x.dtype)
        if torch.is_grad_enabled():
            parts = [expert(x) * weights[..., index : index + 1] for index, expert in enumerate(self.experts)]
            return torch.stack(parts).sum(0)
        flat, shares = x.reshape(-1, x.shape[-1]), weights.reshape(-1, weights.shape[-1])
        out = torch.zeros_like(flat)
        for index, expert in enumerate(self.experts):
            mine = shares[:, index].nonzero().squeeze(1)
            if mine.numel():
                out.index_add_(0, mine, expert(flat[mine]) * shares[mine, index : index + 1])
        return out.view_as(x)


class Upcycled(Language):
    """Any dense model whose configuration has ``upcycle = {"experts": 4, "top_k": 2, "layers": [0, 2, ...]}``."""

    name = "upcycled"
    model_type = "phi"
    """Of the tiny configuration; :meth:`matches` goes by ``upcycle``."""

    def matches(self, config: Any) -> bool:
        """Whether the configuration asks for experts."""
        return bool(getattr(config, "upcycle", None))

    def check(self, config: Any) -> None:
        """Refuses numbers that cannot be.

        Raises:
            ModelError: as said.
        """
        _dense(config).check(config)
        options = config.upcycle
        experts, top_k, layers = (options.get(key) for key in ("experts", "top_k", "layers"))
        if not (
            isinstance(experts, int)
            and isinstance(top_k, int)
            and 1 <= top_k <= experts
            and isinstance(layers, Sequence)
            and layers
            and all(0 <= layer < config.num_hidden_layers for layer in layers)
        ):
            raise ModelError(
                f"Upcycling with {options} cannot be done in {config.num_hidden_layers} layers: give experts, a top_k "
                "of at most that, and layers that exist."
            )

    def image_scale(self, config: Any) -> float:
        """The dense model's."""
        return _dense(config).image_scale(config)

    def build(self, config: Any) -> nn.Module:
        """The dense model with experts in place of some of its feed-forwards."""
        self.check(config)
        model = _dense(config).build(config)
        return upcycle(model, **config.upcycle)

    def tiny(self, width: int, layers: int, vocabulary: int, tie: bool) -> Any:
        """Phi with three experts, two a token, in every second layer."""
        from transformers import PhiConfig

        config = PhiConfig(**sizes(width, layers, vocabulary), tie_word_embeddings=tie)
        config.upcycle = {"experts": 3, "top_k": 2, "layers": list(range(0, layers, 2))}
        return config


def upcycle(model: nn.Module, *, experts: int, top_k: int, layers: Sequence[int]) -> nn.Module:
    """Puts ``experts`` copies of the feed-forward into each of ``layers``, in place; the router starts random.

    Args:
        model: a causal model of transformers with ``model.layers[i].mlp``.
        experts: copies a layer.
        top_k: experts a token.
        layers: indices, from 0.

    Raises:
        ModelError: the model has no feed-forward of that name.
    """
    blocks = getattr(getattr(model, "model", None), "layers", None)
    if blocks is None or not all(hasattr(blocks[index], "mlp") for index in layers):
        raise ModelError(f"{type(model).__name__} has no feed-forward named mlp in its layers, so it is not upcycled.")
    width = int(model.config.hidden_size)  # type: ignore[union-attr, arg-type]
    for index in layers:
        if not isinstance(blocks[index].mlp, ExpertMlp):
            blocks[index].mlp = ExpertMlp(blocks[index].mlp, experts, top_k, width)
    return model


def _dense(config: Any) -> Language:
    from mllm.language import LANGUAGES

    for language in LANGUAGES.values():
        if language.model_type == config.model_type and not isinstance(language, Upcycled):
            return language
    raise ModelError(f"Language model {config.model_type!r} is unknown to the composed model and cannot be upcycled.")
