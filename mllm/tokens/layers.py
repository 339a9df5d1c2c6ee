"""Fewer image tokens from a layer of the language model on: FastV and visual token withdrawal.

Positions are dropped where a layer begins and put back, as zeros, after the last one, so that logits keep their places;
the kept tokens keep their positions, masks and order. Everything is per example: a batch and its examples one by one
give the same. With a cache of past keys, later layers hold the kept tokens alone, and what follows sees those.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, nn

from mllm.tokens.scores import can_be_asked, image_shares
from umbel.errors import ModelError


class LayerDrop:
    """Hooks on the layers of one language model.

    FastV (Chen et al. 2024, arXiv 2403.06764) keeps the share of image tokens that layer ``after`` attends to most.
    The paper asks the prompt's last token; a teacher-forced row does not show where its prompt ends, and a later
    token would let the answer choose what is seen, so the first token after the example's last image is asked. A share
    of 0 is visual token withdrawal (Lin et al. 2024, arXiv 2405.05803): all image tokens go.

    Args:
        embeddings: the input embeddings; their input shows where images are.
        layers: of the decoder.
        after: how many layers see every token, at least 1 and fewer than there are.
        share: of each example's image tokens that stay, in [0, 1); rounded up.
        image_token: id of the placeholder.

    Raises:
        ModelError: ``after`` does not fit, or a layer's attention cannot be asked.
    """

    def __init__(
        self, embeddings: nn.Module, layers: nn.ModuleList, after: int, share: float, image_token: int
    ) -> None:
        if not 1 <= after < len(layers):
            raise ModelError(
                f"model.token-layer {after} does not fit a language model of {len(layers)} layers: choose 1 to "
                f"{len(layers) - 1}."
            )
        if not all(hasattr(layer, "self_attn") for layer in layers):
            raise ModelError(
                f"{type(layers[0]).__name__} is no attention layer, so image tokens cannot be dropped there: use pool, "
                "tome or prumerge."
            )
        asked: Any = layers[after - 1]
        if share > 0 and not can_be_asked(asked.self_attn):
            raise ModelError(
                f"FastV asks the attention of {type(asked).__name__}, which has neither q_proj and k_proj nor "
                "qkv_proj: use withdraw."
            )
        self._share, self._token = share, image_token
        self._images: Tensor | None = None
        self._scores: Tensor | None = None
        self._places: Tensor | None = None
        self._valid: Tensor | None = None
        self._begun: tuple[weakref.ref[Any], Tensor, int] | None = None
        self._handles = [embeddings.register_forward_hook(self._see)]
        if share > 0:
            self._handles.append(layers[after - 1].register_forward_pre_hook(self._score, with_kwargs=True))
        for number in range(after, len(layers)):
            enter = self._first if number == after else self._later
            self._handles.append(layers[number].register_forward_pre_hook(enter, with_kwargs=True))
        self._handles.append(layers[len(layers) - 1].register_forward_hook(self._restore))

    def remove(self) -> None:
        """Takes the hooks off."""
        for handle in self._handles:
            handle.remove()

    @property
    def active(self) -> bool:
        """Whether image tokens have been dropped in the pass that is under way, or was the last."""
        return self._places is not None

    def kept(self, mask: Tensor) -> Tensor:
        """Of a map [n, T] of the last pass's tokens what its later layers saw, [n, L]; 0 for fillers."""
        assert self._places is not None
        assert self._valid is not None
        return mask.gather(1, self._places) * self._valid

    def _see(self, _module: nn.Module, inputs: tuple[Any, ...], _output: Tensor) -> None:
        self._images = inputs[0] == self._token
        self._places = self._valid = None  # a new pass

    def _score(self, layer: Any, inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden: Tensor = inputs[0] if inputs else kwargs["hidden_states"]
        images = self._active(hidden)
        if images is not None:
            self._scores = image_shares(layer, hidden, images, kwargs)

    def _active(self, hidden: Tensor) -> Tensor | None:
        """Where images are, bool [n, T]; None when this pass has none, or goes on from a cache."""
        images = self._images
        if images is None or images.shape != hidden.shape[:2] or not bool(images.any()):
            return None
        return images

    def _first(self, _layer: nn.Module, inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        hidden: Tensor = inputs[0] if inputs else kwargs["hidden_states"]
        images = self._active(hidden)
        self._places = self._valid = None
        past = kwargs.get("past_key_values")
        if past is not None and past.get_seq_length() > hidden.shape[1]:
            # Goes on from a cache. Layers before this one have been there already: they count every token.
            return None if self._begun is None else (inputs, self._gone_on(kwargs, hidden))
        self._begun = None
        if images is None:
            return None
        keep = ~images
        if self._share > 0 and self._scores is not None:
            rank = self._scores.masked_fill(keep, -1).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
            wanted = (images.sum(dim=1, keepdim=True) * self._share).ceil()
            keep = keep | (images & (rank < wanted))
        length = int(keep.sum(dim=1).max())
        self._places = (~keep).to(torch.int8).argsort(dim=1, stable=True)[:, :length]
        self._valid = keep.gather(1, self._places)
        self._shape = hidden.shape
        short = hidden.gather(1, self._places.unsqueeze(-1).expand(-1, -1, hidden.shape[-1]))
        changed = self._shortened(kwargs)
        if past is not None:
            visible = self._visible(kwargs.get("attention_mask"), self._places, self._valid)
            self._begun = (weakref.ref(past), visible, hidden.shape[1])
        if inputs:
            return (short, *inputs[1:]), changed
        return inputs, changed | {"hidden_states": short}

    def _later(self, _layer: nn.Module, inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._places is not None:
            return inputs, self._shortened(kwargs)
        past = kwargs.get("past_key_values")
        hidden: Tensor = inputs[0] if inputs else kwargs["hidden_states"]
        if self._begun is None or past is None or past.get_seq_length() <= hidden.shape[1]:
            return None
        return inputs, self._gone_on(kwargs, hidden)

    def _gone_on(self, kwargs: dict[str, Any], hidden: Tensor) -> dict[str, Any]:
        """A layer's mask where its cache holds kept tokens alone: [n, 1, q, kept + tokens since]."""
        assert self._begun is not None
        past, (mine, visible, begun) = kwargs["past_key_values"], self._begun
        mask, q, total = kwargs.get("attention_mask"), hidden.shape[1], int(past.get_seq_length())
        whole = mask is None or (mask.ndim == 4 and mask.shape[-1] == total)
        if mine() is not past or not whole or visible.shape[0] != hidden.shape[0]:
            raise ModelError(
                "Image tokens were dropped inside the language model, and this cache is not the one that began with "
                "them: generate in one call, or pass use_cache=False."
            )
        new = total - begun
        front = visible.view(visible.shape[0], 1, 1, -1).expand(-1, 1, q, -1)
        if mask is None:
            steps = torch.arange(new, device=hidden.device)
            tail = (steps <= steps[-q:].unsqueeze(1)).expand(front.shape[0], 1, -1, -1)
        else:
            tail = mask[..., begun:].expand(front.shape[0], -1, -1, -1)
        if tail.dtype != torch.bool:
            lowest = torch.finfo(tail.dtype).min
            front = torch.zeros_like(front, dtype=tail.dtype).masked_fill(~front, lowest)
        return kwargs | {"attention_mask": torch.cat([front.expand(-1, tail.shape[1], -1, -1), tail], dim=-1)}

    @staticmethod
    def _visible(mask: Tensor | None, places: Tensor, valid: Tensor) -> Tensor:
        """bool [n, L]: which kept tokens whatever follows may see; neither padding nor fillers."""
        if mask is None:
            return valid
        last = mask[:, 0, -1].expand(places.shape[0], -1).gather(1, places)
        return valid & (last if last.dtype == torch.bool else last > torch.finfo(last.dtype).min / 2)

    def _shortened(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """A layer's mask and positions, for the kept tokens."""
        assert self._places is not None
        assert self._valid is not None
        places, n = self._places, self._places.shape[0]
        changed = dict(kwargs)
        if kwargs.get("position_embeddings") is not None:
            changed["position_embeddings"] = tuple(
                part.expand(n, -1, -1).gather(1, places.unsqueeze(-1).expand(-1, -1, part.shape[-1]))
                for part in kwargs["position_embeddings"]
            )
        if isinstance(kwargs.get("position_ids"), Tensor):
            changed["position_ids"] = kwargs["position_ids"].expand(n, -1).gather(1, places)
        changed["attention_mask"] = self._mask(kwargs.get("attention_mask"), places, self._valid)
        return changed

    @staticmethod
    def _mask(mask: Tensor | None, places: Tensor, valid: Tensor) -> Tensor:
        """[n, 1, L, L] over the kept tokens; a filler sees itself alone, so that no row is empty."""
        n, length = places.shape
        seen = valid.unsqueeze(1) | torch.eye(length, dtype=torch.bool, device=places.device)
        if mask is None:
            return (seen & (places.unsqueeze(1) <= places.unsqueeze(2))).unsqueeze(1)
        if mask.ndim != 4:
            raise ModelError(f"An attention mask of {mask.ndim} dimensions cannot be cut: use sdpa or eager attention.")
        rows = mask.expand(n, -1, -1, -1).gather(
            2, places.view(n, 1, length, 1).expand(-1, mask.shape[1], -1, mask.shape[3])
        )
        cut = rows.gather(3, places.view(n, 1, 1, length).expand(-1, mask.shape[1], length, -1))
        own = (torch.eye(length, dtype=torch.bool, device=places.device) & ~valid.unsqueeze(2)).unsqueeze(1)
        if cut.dtype == torch.bool:
            return (cut & seen.unsqueeze(1)) | own
        lowest = torch.finfo(cut.dtype).min
        return cut.masked_fill(~seen.unsqueeze(1), lowest).masked_fill(own, 0.0)

    def _restore(self, _layer: nn.Module, _inputs: tuple[Any, ...], output: Any) -> Any:
        if self._places is None or self._valid is None:
            return None
        short: Tensor = output[0] if isinstance(output, tuple) else output
        real = short * self._valid.unsqueeze(-1).to(short.dtype)
        # Fillers come last and would overwrite nothing: each place stands in the row once.
        full = short.new_zeros(self._shape).scatter(1, self._places.unsqueeze(-1).expand_as(real), real)
        return (full, *output[1:]) if isinstance(output, tuple) else full
