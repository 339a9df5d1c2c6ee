"""Answerer: greedy answers, if wanted from averaged views of the image or with a prompt tuned to each example."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mllm.inference.views import views
from mllm.soft import attach_soft_tokens
from mllm.tasks.collate import Collator
from mllm.tasks.example import Example
from umbel.errors import ModelError

_PROMPT_TOKENS = 4
_PROMPT_SCALE = 0.02
_CONFIDENT = 0.5


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model says.

    Attributes:
        text: without special tokens and surrounding blanks.
        probability: product over the answer's tokens, its end included, of the greedy token's probability.
        tokens: how many.
        complete: the answer ended by itself, before the limit.
    """

    text: str
    probability: float
    tokens: int
    complete: bool


class Answerer:
    """Greedy decoding. The model computes with the adapter that is in it.

    Args:
        model: in evaluation mode.
        collator: of the model.
        most_tokens: of an answer.
        augment: views of each image whose next-token probabilities are averaged (test-time augmentation); 1 is off.
        tuning_steps: steps in which a prompt of 4 soft tokens is tuned to each example, so that the average over the
            views of the first answer token becomes certain (test-time prompt tuning, Shu et al. 2022: the half of
            the views with the lowest entropy counts; the paper takes a tenth of 64). 0 is off.
        tuning_rate: of AdamW in those steps.
        seed: of views and prompts.

    Raises:
        ModelError: a count is impossible, or the model takes no soft tokens.
    """

    def __init__(
        self,
        model: Any,
        collator: Collator,
        *,
        most_tokens: int = 16,
        augment: int = 1,
        tuning_steps: int = 0,
        tuning_rate: float = 5e-3,
        seed: int = 0,
    ) -> None:
        if most_tokens < 1 or augment < 1 or tuning_steps < 0:
            raise ModelError(
                f"Answers of {most_tokens} tokens from {augment} views with {tuning_steps} tuning steps are "
                "impossible: raise them."
            )
        if tuning_steps and augment < 2:
            raise ModelError(
                "Test-time prompt tuning compares views of an image: ask for at least 2 views (--augment)."
            )
        self._model, self._collator = model, collator
        self._most, self._views = most_tokens, augment
        self._steps, self._rate, self._seed = tuning_steps, tuning_rate, seed
        config = model.config
        self._image = int(getattr(config, "image_token_id", getattr(config, "image_token_index", -1)))

    def answer(self, examples: Sequence[Example]) -> list[Answer]:
        """One answer an example, in their order. An example's answer does not depend on its company.

        Raises:
            DataError: no examples, or an image cannot be read.
            ModelError: logits are not finite.
        """
        if self._steps:
            return [self._tuned(example) for example in examples]
        groups = [views(example, self._views, self._seed) for example in examples]
        with torch.no_grad():
            return self._decode(groups)

    def _tuned(self, example: Example) -> Answer:
        seen = views(example, self._views, self._seed)
        inner = self._model.get_base_model() if hasattr(self._model, "get_base_model") else self._model
        soft, handles = attach_soft_tokens(inner, "prompt", _PROMPT_TOKENS)
        try:
            device = next(self._model.parameters()).device
            generator = torch.Generator().manual_seed(self._seed)
            start = torch.randn(soft.embeddings.shape, generator=generator) * _PROMPT_SCALE
            soft.embeddings.data = start.to(device)
            optimizer = torch.optim.AdamW([soft.embeddings], lr=self._rate, weight_decay=0.0)
            inputs = self._placed(self._collator.prompts(seen))
            for _ in range(self._steps):
                with torch.enable_grad():
                    logs = self._next(inputs)
                    entropy = -(logs.exp() * logs.clamp(min=-1e4)).sum(dim=-1)
                    sure = entropy.argsort()[: max(1, int(len(seen) * _CONFIDENT))]
                    mean = logs[sure].exp().mean(dim=0).clamp(min=1e-12)
                    loss = -(mean * mean.log()).sum()
                    (soft.embeddings.grad,) = torch.autograd.grad(loss, [soft.embeddings])
                optimizer.step()
            with torch.no_grad():
                return self._decode([seen])[0]
        finally:
            for handle in handles:
                handle.remove()

    def _decode(self, groups: Sequence[Sequence[Example]]) -> list[Answer]:
        """Greedy answers of groups of views; the views of a group say the same token at every step."""
        owner = torch.repeat_interleave(torch.arange(len(groups)), torch.tensor([len(g) for g in groups]))
        inputs = self._placed(self._collator.prompts([example for group in groups for example in group]))
        owner = owner.to(inputs["input_ids"].device)
        sizes = torch.bincount(owner, minlength=len(groups)).unsqueeze(1)
        logs = torch.zeros(len(groups), device=owner.device)
        done = torch.zeros(len(groups), dtype=torch.bool, device=owner.device)
        said: list[list[int]] = [[] for _ in groups]
        for _ in range(self._most):
            each = self._next(inputs).exp()
            mean = torch.zeros(len(groups), each.shape[1], device=each.device).index_add(0, owner, each) / sizes
            best, token = mean.max(dim=1)
            logs = logs + torch.where(done, torch.zeros_like(logs), best.clamp(min=1e-30).log())
            for number, one in enumerate(token.tolist()):
                if not done[number]:
                    said[number].append(one)
            done |= token == self._collator.eos_id
            if bool(done.all()):
                break
            inputs = _longer(inputs, token[owner])
        return [
            Answer(
                self._collator.tokenizer.decode(ids, skip_special_tokens=True).strip(),
                float(logs[number].exp()),
                len(ids),
                bool(done[number]),
            )
            for number, ids in enumerate(said)
        ]

    def _next(self, inputs: dict[str, Tensor]) -> Tensor:
        """Log-probabilities of the next token, float32 [n, V]; a placeholder is never said."""
        # Without a cache: soft tokens and dropped image tokens change what a cache would hold, and answers are short.
        logits = self._model(**inputs, use_cache=False).logits[:, -1].float()
        if 0 <= self._image < logits.shape[1]:
            logits = logits.index_fill(1, torch.tensor([self._image], device=logits.device), float("-inf"))
        if bool(logits.isnan().any()):
            raise ModelError("The model's logits are not finite: choose another adapter or quantization.")
        logs: Tensor = logits.log_softmax(dim=-1)
        return logs

    def _placed(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        device = next(self._model.parameters()).device
        return {name: value.to(device) for name, value in inputs.items()}


def _longer(inputs: dict[str, Tensor], token: Tensor) -> dict[str, Tensor]:
    """The inputs with one more text token a row, and 0 in every other map of tokens."""
    shape = inputs["input_ids"].shape
    more = dict(inputs)
    for name, value in inputs.items():
        if value.shape == shape:
            last = token if name == "input_ids" else torch.ones_like(token) if name == "attention_mask" else token * 0
            more[name] = torch.cat([value, last.unsqueeze(1).to(value.dtype)], dim=1)
    return more
