"""Tiny random models of further hub families, and one table of families that have a row map.

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
from mllm.testing_natives import tiny_llava_onevision
from umbel.errors import ModelError

IMAGE_TOKEN = 60
START_TOKEN = 62
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
_MROPE: Mapping[str, Any] = {
    **_TEXT,
    "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0},
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


def _qwen2_vl(seed: int) -> Family:
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2, "num_heads": 4, "patch_size": 4}
    config = transformers.Qwen2VLConfig(
        vision_config=vision,
        text_config=_MROPE,
        image_token_id=IMAGE_TOKEN,
        video_token_id=61,
        vision_start_token_id=START_TOKEN,
    )
    model = _seeded(lambda: transformers.Qwen2VLForConditionalGeneration(config), seed)
    return Family("qwen2_vl", model, _tensors(4, packed=True))


def _qwen3_vl(seed: int) -> Family:
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 4,
        "patch_size": 4,
        "out_hidden_size": 32,
        "deepstack_visual_indexes": [0],
        "num_position_embeddings": 16,
    }
    config = transformers.Qwen3VLConfig(
        vision_config=vision,
        text_config={**_MROPE, "head_dim": 8},
        image_token_id=IMAGE_TOKEN,
        video_token_id=61,
        vision_start_token_id=START_TOKEN,
    )
    model = _seeded(lambda: transformers.Qwen3VLForConditionalGeneration(config), seed)
    return Family("qwen3_vl", model, _tensors(4, packed=True))


def _gemma3(seed: int) -> Family:
    config = transformers.Gemma3Config(
        vision_config={**_VISION, "model_type": "siglip_vision_model", "vision_use_head": False},
        text_config={**_TEXT, "head_dim": 8, "sliding_window": 64},
        mm_tokens_per_image=4,
        image_token_id=IMAGE_TOKEN,
    )
    model = _seeded(lambda: transformers.Gemma3ForConditionalGeneration(config), seed)
    generator = torch.Generator().manual_seed(seed)
    weight = model.model.multi_modal_projector.mm_input_projection_weight  # zero when new: images would not matter
    weight.data.copy_(torch.randn(weight.shape, generator=generator) * 0.2)
    return Family("gemma3", model, _tensors(4, token_types=True))


def _vipllava(seed: int) -> Family:
    config = transformers.VipLlavaConfig(
        vision_config={**_VISION, "model_type": "clip_vision_model"},
        text_config={**_TEXT, "model_type": "llama"},
        image_token_index=IMAGE_TOKEN,
        vision_feature_layers=[-1, -2],
        image_seq_length=16,
    )
    model = _seeded(lambda: transformers.VipLlavaForConditionalGeneration(config), seed)
    return Family("vipllava", model, _tensors(16))


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
FURTHER: Mapping[str, Callable[[int], Family]] = {
    "qwen2_vl": _qwen2_vl,
    "qwen3_vl": _qwen3_vl,
    "gemma3": _gemma3,
    "vipllava": _vipllava,
    "llava_onevision": _of_tiny("llava_onevision", tiny_llava_onevision),
}
"""Relatives of the families above."""


def family(name: str, seed: int = 0) -> Family:
    """The tiny family of this name, in eval mode and float32.

    Raises:
        ModelError: there is none; the message lists them.
    """
    makers = {**MAKERS, **FURTHER}
    if name not in makers:
        raise ModelError(f"There is no tiny family {name!r}: choose one of {', '.join(makers)}.")
    return makers[name](seed)


def _seeded(make: Callable[[], Any], seed: int) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make().eval()


def _tensors(
    tokens: int, *, padded: bool = False, packed: bool = False, token_types: bool = False
) -> Callable[..., TinyBatch]:
    """Batches with ``tokens`` placeholders an image and 3 to 7 words, padded on the right."""

    def batch(images_per_example: Sequence[int], *, seed: int = 0) -> TinyBatch:
        counts = list(images_per_example)
        generator = torch.Generator().manual_seed(seed)
        lines = []
        for count in counts:
            length = int(torch.randint(3, 8, (1,), generator=generator))
            words = torch.randint(3, 50, (length,), generator=generator)
            image = [*([START_TOKEN] if packed else []), *[IMAGE_TOKEN] * tokens]
            lines.append(torch.cat([torch.tensor(image * count, dtype=torch.int64), words]))
        ids = torch.nn.utils.rnn.pad_sequence(lines, batch_first=True)
        mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(line) for line in lines], batch_first=True)
        inputs = {"input_ids": ids, "attention_mask": mask}
        labels = ids.masked_fill((mask == 0) | (ids == IMAGE_TOKEN), -100)
        if token_types:
            inputs["token_type_ids"] = (labels != -100).long()
        if packed:
            inputs["mm_token_type_ids"] = (ids == IMAGE_TOKEN).long()
        if packed and any(counts):
            inputs["pixel_values"] = torch.randn(16 * sum(counts), 3 * 2 * 4 * 4, generator=generator)
            inputs["image_grid_thw"] = torch.tensor([[1, 4, 4]] * sum(counts))
        elif any(counts):
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
