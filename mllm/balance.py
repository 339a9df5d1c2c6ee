"""Balance of experts: a term of each example's own loss that spreads its tokens over the experts of a mixture.

As it is usually taken (Fedus et al. 2021, equation 4), the loss looks at the share of a whole batch's tokens that each
expert gets. One example then changes what all others in its batch are asked for, and no bound per example would hold.
Here shares and means are taken within each example, as DeepSeek-V3's loss within a sequence does (2024, section 2.1.2,
equations 17 to 20), so an example's term depends on that example alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mllm.language.upcycled import ExpertMlp
from mllm.unwrapped import unwrapped

_ROUTERS = ("MixtralTopKRouter", "Qwen2MoeTopKRouter")
"""Of transformers: give logits [n * T, experts] first, and know their ``top_k``."""


@dataclass
class Routing:
    """What one layer's router said in the last forward pass.

    Attributes:
        top_k: experts a token.
        drop: what drops image tokens inside the language model, or None.
        said: probabilities [n, T, experts] or logits [n * T, experts]; None before a forward pass.
        logits: which of the two.
        dropped: image tokens were missing in this layer.
    """

    top_k: int
    drop: Any = None
    said: Tensor | None = None
    logits: bool = False
    dropped: bool = False

    def see(self, module: nn.Module, _inputs: Any, output: Any) -> None:
        """Forward hook of upcycled experts, or of a router of transformers.

        It computes nothing: a layer that is computed again for its gradient must then save the same tensors.
        """
        self.said = module.probabilities if isinstance(module, ExpertMlp) else output[0]
        self.logits = not isinstance(module, ExpertMlp)
        self.dropped = self.drop is not None and self.drop.active

    def probabilities(self, examples: int) -> Tensor:
        """float32 [n, T, experts] of the pass."""
        assert self.said is not None
        said = self.said.float().softmax(dim=-1) if self.logits else self.said
        return said.reshape(examples, -1, said.shape[-1])


@contextmanager
def recorded_routing(model: nn.Module) -> Iterator[list[Routing]]:
    """One entry a layer of experts, in the model's order; a forward pass inside the block fills them.

    Probabilities carry their gradient. A model without experts gives an empty list.
    """
    drop = getattr(unwrapped(model), "umbel_drop", None)
    found: list[Routing] = []
    handles: list[Any] = []
    experts: list[ExpertMlp] = []
    for module in model.modules():
        if isinstance(module, ExpertMlp):
            experts.append(module)
        if isinstance(module, ExpertMlp) or type(module).__name__ in _ROUTERS:
            found.append(Routing(int(module.top_k), drop))  # type: ignore[arg-type]
            handles.append(module.register_forward_hook(found[-1].see))
    for layer in experts:
        layer.recording = True
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
        for layer in experts:
            layer.recording, layer.probabilities = False, None


def balance_losses(routing: list[Routing], mask: Tensor) -> Tensor:
    """The balance of each example, float32 [n]: the mean over layers of :func:`balance_loss`.

    Tokens are the example's own, images included; soft tokens and padding do not count, nor do image tokens in layers
    where :class:`mllm.tokens.layers.LayerDrop` has dropped them.

    Args:
        routing: of the last forward pass, at least one layer.
        mask: [n, T], 1 for tokens.
    """
    terms = []
    for layer in routing:
        probabilities, seen = layer.probabilities(len(mask)), mask
        if layer.dropped:
            seen = layer.drop.kept(mask)
        elif probabilities.shape[1] > mask.shape[1]:  # soft tokens come first
            probabilities = probabilities[:, -mask.shape[1] :]
        terms.append(balance_loss(probabilities, seen, layer.top_k))
    return torch.stack(terms).mean(dim=0)


def balance_loss(probabilities: Tensor, mask: Tensor, top_k: int) -> Tensor:
    """The loss that spreads tokens over experts (Fedus et al. 2021, equation 4), for every example by itself.

    Args:
        probabilities: of the router, [n, T, experts].
        mask: [n, T], 1 for tokens.
        top_k: experts a token.

    Returns:
        [n], 1 for a uniform router; an example without tokens gives 0.
    """
    experts = probabilities.shape[-1]
    chosen = torch.zeros_like(probabilities).scatter(-1, probabilities.topk(top_k, dim=-1).indices, 1.0 / top_k)
    weight = mask.to(probabilities.dtype).unsqueeze(-1)
    tokens = weight.sum(1).clamp(min=1)
    share, mean = (chosen * weight).sum(1) / tokens, (probabilities * weight).sum(1) / tokens
    return experts * (share * mean).sum(-1)
