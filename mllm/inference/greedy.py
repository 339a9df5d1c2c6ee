"""Greedy decoding by transformers' own ``generate``, whose cache and positions are right for every family."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from mllm.unwrapped import unwrapped
from umbel.errors import ModelError


class GreedyMean(LogitsProcessor):  # type: ignore[misc]
    """Replaces the scores of each group of rows by the logarithm of the mean of their probabilities.

    Args:
        sizes: int64 [groups], how many rows each has, one after the other.
        image: id of the placeholder, which is never said; negative if there is none.
    """

    def __init__(self, sizes: Tensor, image: int) -> None:
        self._sizes, self._image = sizes, image
        self._owner = torch.repeat_interleave(torch.arange(len(sizes), device=sizes.device), sizes)
        self._logs: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """[rows, V] to the same; every row of a group gets the same.

        Raises:
            ModelError: a score is not a number.
        """
        each = next_logs(scores.float(), self._image).exp()
        mean = torch.zeros(len(self._sizes), each.shape[1], device=each.device).index_add(0, self._owner, each)
        mean = mean / self._sizes.unsqueeze(1)
        self._logs.append(mean.amax(dim=1).clamp(min=1e-30).log())
        return mean.log()[self._owner]

    def logs(self) -> Tensor:
        """Log-probability of the greedy token, float32 [groups, steps], also of steps after an answer's end."""
        return torch.stack(self._logs, dim=1)


def next_logs(logits: Tensor, image: int) -> Tensor:
    """Log-probabilities float32 [n, V] of the next token from its ``logits``, none for the placeholder ``image``.

    Raises:
        ModelError: a logit is not a number.
    """
    if 0 <= image < logits.shape[1]:
        logits = logits.index_fill(1, torch.tensor([image], device=logits.device), float("-inf"))
    if bool(logits.isnan().any()):
        raise ModelError("The model's logits are not finite: choose another adapter or quantization.")
    logs: Tensor = logits.log_softmax(dim=-1)
    return logs


def generate(
    model: Any, inputs: dict[str, Tensor], mean: GreedyMean, *, most: int, eos: int, pad: int, cache: bool
) -> Tensor:
    """Token ids that were said, int64 [rows, steps] with steps <= ``most``; ``pad`` after a row's end.

    What a published checkpoint asks of generation (sampling, penalties on repetition, another end) is not followed:
    the answer is the greedy one, so that its probability means something.

    Args:
        model: in evaluation mode, with or without PEFT's wrapper.
        inputs: of prompts, padded on the left.
        mean: fresh; is asked at every step.
        most: tokens.
        eos: ends a row.
        pad: id of padding.
        cache: keep keys, values and states of past tokens.
    """
    config = GenerationConfig(
        max_new_tokens=most,
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        min_length=0,
        use_cache=cache,
        eos_token_id=eos,
        pad_token_id=pad,
    )
    found = model.generate(**inputs, generation_config=config, logits_processor=LogitsProcessorList([mean]))
    said: Tensor = found[:, inputs["input_ids"].shape[1] :]
    return said


def may_cache(model: Any, length: int) -> bool:
    """Whether a cache leaves what is computed unchanged for sequences of ``length`` tokens.

    Image tokens that are dropped inside the language model leave some layers with fewer keys than others; where such a
    layer looks back over a window only, and the window is shorter than the text, it would then see further back.
    """
    inner = unwrapped(model)
    drop = getattr(inner, "umbel_drop", None)
    window = getattr(inner.config.get_text_config(), "sliding_window", None)
    return drop is None or not isinstance(window, int) or length < window
