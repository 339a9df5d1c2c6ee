"""Tiny random models of further hub families, and one table of all families that have a row map.

Batches are made of random tensors in the layout that the family's processor gives, so no processor is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor

from mllm.testing import TinyBatch, tiny_composed, tiny_llava, tiny_qwen25vl, tiny_smolvlm
from umbel.errors import ModelError

IMAGE_TOKEN = 60
_TEXT: Mapping[str, int] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_VISION: Mapping[str, int] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 4,
}


@dataclass(frozen=True)
class Family:
    """A tiny model and ``batch(images_per_example, seed=0)`` that makes batches for it."""

    name: str
    model: Any
    batch: Callable[..., TinyBatch]


def _paligemma(seed: int) -> Family:
    config = transformers.PaliGemmaConfig(
        vision_config={**_VISION, "model_type": "siglip_vision_model", "projection_dim": 32, "vision_use_head": False},
        text_config={**_TEXT, "model_type": "gemma", "head_dim": 8},
        image_token_index=IMAGE_TOKEN,
        projection_dim=32,
        hidden_size=32,
    )
    model = _seeded(lambda: transformers.PaliGemmaForConditionalGeneration(config), seed)
    return Family("paligemma", model, _tensors(16, token_types=True))


def _internvl(seed: int) -> Family:
    vision = {**_VISION, "model_type": "internvl_vision", "image_size": [16, 16], "patch_size": [4, 4]}
    config = transformers.InternVLConfig(
        vision_config=vision,
        text_config={**_TEXT, "model_type": "qwen2"},
        image_token_id=IMAGE_TOKEN,
        image_seq_length=4,
        downsample_ratio=0.5,
    )
    return Family("internvl", _seeded(lambda: transformers.InternVLForConditionalGeneration(config), seed), _tensors(4))


def _idefics3(seed: int) -> Family:
    config = transformers.Idefics3Config(
        vision_config={**_VISION, "model_type": "idefics3_vision"},
        text_config={**_TEXT, "model_type": "llama"},
        image_token_id=IMAGE_TOKEN,
        scale_factor=2,
    )
    model = _seeded(lambda: transformers.Idefics3ForConditionalGeneration(config), seed)
    return Family("idefics3", model, _tensors(4, padded=True))


def _idefics2(seed: int) -> Family:
    config = transformers.Idefics2Config(
        vision_config={**_VISION, "model_type": "idefics2_vision"},
        text_config={**_TEXT, "model_type": "mistral", "sliding_window": None},
        perceiver_config={
            "resampler_n_latents": 4,
            "resampler_depth": 1,
            "resampler_n_heads": 2,
            "resampler_head_dim": 16,
            "num_key_value_heads": 1,
            "hidden_size": 32,
        },
        image_token_id=IMAGE_TOKEN,
    )
    model = _seeded(lambda: transformers.Idefics2ForConditionalGeneration(config), seed)
    return Family("idefics2", model, _tensors(4, padded=True))


def _of_tiny(name: str, make: Callable[..., Any]) -> Callable[[int], Family]:
    def family(seed: int) -> Family:
        tiny = make(seed=seed)
        return Family(name, tiny.model, tiny.batch)

    return family


def _composed(*, seed: int = 0) -> Any:
    return tiny_composed(encoder="siglip", projector="mlp", language="llama", seed=seed)


MAKERS: Mapping[str, Callable[[int], Family]] = {
    "smolvlm": _of_tiny("smolvlm", tiny_smolvlm),
    "llava": _of_tiny("llava", tiny_llava),
    "qwen2_5_vl": _of_tiny("qwen2_5_vl", tiny_qwen25vl),
    "paligemma": _paligemma,
    "idefics3": _idefics3,
    "idefics2": _idefics2,
    "internvl": _internvl,
    "composed": _of_tiny("composed", _composed),
}


def family(name: str, seed: int = 0) -> Family:
    """The tiny family of this name, in eval mode and float32.

    Raises:
        ModelError: there is none; the message lists them.
    """
    if name not in MAKERS:
        raise ModelError(f"There is no tiny family {name!r}: choose one of {', '.join(MAKERS)}.")
    return MAKERS[name](seed)


def _seeded(make: Callable[[], Any], seed: int) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make().eval()


def _tensors(tokens: int, *, padded: bool = False, token_types: bool = False) -> Callable[..., TinyBatch]:
    """Batches with ``tokens`` placeholders an image and 3 to 7 words, padded on the right."""

    def batch(images_per_example: Sequence[int], *, seed: int = 0) -> TinyBatch:
        counts = list(images_per_example)
        generator = torch.Generator().manual_seed(seed)
        lines = []
        for count in counts:
            length = int(torch.randint(3, 8, (1,), generator=generator))
            words = torch.randint(3, 50, (length,), generator=generator)
            lines.append(torch.cat([torch.full((count * tokens,), IMAGE_TOKEN), words]))
        ids = torch.nn.utils.rnn.pad_sequence(lines, batch_first=True)
        mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(line) for line in lines], batch_first=True)
        inputs = {"input_ids": ids, "attention_mask": mask}
        labels = ids.masked_fill((mask == 0) | (ids == IMAGE_TOKEN), -100)
        if token_types:
            inputs["token_type_ids"] = (labels != -100).long()
        if sum(counts):
            inputs["pixel_values"] = _pixels(counts, generator, padded)
        return TinyBatch(inputs, labels, counts)

    return batch


def _pixels(counts: Sequence[int], generator: torch.Generator, padded: bool) -> Tensor:
    images = torch.randn(sum(counts), 3, 16, 16, generator=generator)
    if not padded:
        return images
    filled = torch.zeros(len(counts), max(counts), 3, 16, 16)
    start = 0
    for index, count in enumerate(counts):
        filled[index, :count] = images[start : start + count]
        start += count
    return filled
