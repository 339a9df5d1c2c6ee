"""Answerer: greedy answers, if wanted from averaged views of the image or with a prompt tuned to each example."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mllm.inference.greedy import GreedyMean, generate, may_cache, next_logs
from mllm.inference.views import views
from mllm.soft import attach_soft_tokens
from mllm.tasks.collate import Collator
from mllm.tasks.example import Example
from mllm.unwrapped import unwrapped
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
        cache: keep the keys and values (or states) of past tokens while an answer is written. It changes the time that
            an answer takes and nothing else; where it would, it is left out (:func:`mllm.inference.greedy.may_cache`).

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
        cache: bool = True,
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
        self._cache = cache
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
        soft, handles = attach_soft_tokens(unwrapped(self._model), "prompt", _PROMPT_TOKENS)
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
        sizes = torch.tensor([len(group) for group in groups])
        inputs = self._placed(self._collator.prompts([example for group in groups for example in group]))
        length = inputs["input_ids"].shape[1]
        mean = GreedyMean(sizes.to(inputs["input_ids"].device), self._image)
        said = generate(
            self._model,
            inputs,
            mean,
            most=self._most,
            eos=self._collator.eos_id,
            pad=self._collator.pad_id,
            cache=self._cache and may_cache(self._model, length + self._most),
        )
        return [
            self._answer(ids, logs)
            for ids, logs in zip(said[sizes.cumsum(0) - 1].tolist(), mean.logs().tolist(), strict=True)
        ]

    def _answer(self, ids: list[int], logs: list[float]) -> Answer:
        eos = self._collator.eos_id
        complete = eos in ids
        ids = ids[: ids.index(eos) + 1] if complete else ids
        text = self._collator.tokenizer.decode(ids, skip_special_tokens=True).strip()
        return Answer(text, math.exp(sum(logs[: len(ids)])), len(ids), complete)

    def _next(self, inputs: dict[str, Tensor]) -> Tensor:
        """Log-probabilities of the next token, float32 [n, V]; a placeholder is never said."""
        logits = self._model(**inputs, use_cache=False).logits[:, -1].float()
        return next_logs(logits, self._image)

    def _placed(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        device = next(self._model.parameters()).device
        return {name: value.to(device) for name, value in inputs.items()}
