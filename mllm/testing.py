"""Tiny models with random weights, for tests of umbel and of what is built on it.

Each maker returns a :class:`Tiny`: the model in float32, its processor, and a function that makes a
batch. They need no network and no torchvision; widths are multiples of 64, so every quantization works.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from PIL import Image

from mllm.config import ComposedConfig
from mllm.encoders import ENCODERS
from mllm.hub_processor import without_video
from mllm.language import LANGUAGES
from mllm.language.base import sizes
from mllm.modeling import ComposedForConditionalGeneration
from mllm.processing import ComposedProcessor
from mllm.projectors import PROJECTORS
from mllm.tokenizer import word_tokenizer
from umbel.errors import ModelError

QWEN_MARKS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
QWEN_MARK = "<|vision_start|><|image_pad|><|vision_end|>"
"""How Qwen's families write an image in a text."""
WORDS = tuple(
    "what colour is the shape ? there a in image yes no red blue green gray circle square user assistant :".split()  # noqa: SIM905
)


@dataclass(frozen=True)
class TinyBatch:
    """A batch of ``len(images_per_example)`` examples.

    Attributes:
        inputs: what ``model(**inputs)`` takes.
        labels: int64 [n, T], -100 on padding and image tokens.
        images_per_example: how many images each example has.
    """

    inputs: dict[str, torch.Tensor]
    labels: torch.Tensor
    images_per_example: list[int]


class Tiny(NamedTuple):
    """A tiny model, its processor, and ``batch(images_per_example, seed=0, padding_side="right")``."""

    model: Any
    processor: Any
    batch: Callable[..., TinyBatch]

    def save(self, directory: str | Path) -> Path:
        """Writes model and processor as one checkpoint directory."""
        self.model.save_pretrained(str(directory))
        self.processor.save_pretrained(str(directory))
        return Path(directory)


def random_image(seed: int, width: int = 32, height: int = 32) -> Image.Image:
    """An RGB image of uniform noise; the same seed gives the same image."""
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def tiny_composed(
    encoder: str = "resnet",
    projector: str = "mlp",
    language: str = "llama",
    *,
    width: int = 64,
    layers: int = 2,
    image_size: int = 32,
    tie: bool = False,
    seed: int = 0,
) -> Tiny:
    """A composed model of the parts named.

    Args:
        encoder: one of ``mllm.encoders.ENCODERS``.
        projector: one of ``mllm.projectors.PROJECTORS``.
        language: one of ``mllm.language.LANGUAGES``.
        width: width of both towers, a multiple of 64.
        layers: layers of each tower.
        image_size: pixels a side, a multiple of 16; most encoders make (image_size / 8)**2 tokens of an image.
        tie: tie the embeddings to the head.
        seed: of the weights; the global generator is left as it was.

    Raises:
        ModelError: an unknown part.
    """
    tokenizer = word_tokenizer(WORDS)
    for kind, name, known in (
        ("encoder", encoder, ENCODERS),
        ("projector", projector, PROJECTORS),
        ("language model", language, LANGUAGES),
    ):
        if name not in known:
            raise ModelError(f"There is no tiny {kind} {name!r}: choose one of {', '.join(known)}.")
    config = ComposedConfig(
        vision_config=ENCODERS[encoder].tiny(width, layers, image_size),
        text_config=LANGUAGES[language].tiny(width, layers, len(tokenizer), tie),
        projector={"type": projector, **PROJECTORS[projector].tiny()},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )
    model = _seeded(lambda: ComposedForConditionalGeneration(config), seed)
    processor = ComposedProcessor.for_config(config, tokenizer)
    return Tiny(model, processor, _batcher(processor, "<image>", image_size, nested=True))


def tiny_llava(*, seed: int = 0) -> Tiny:
    """LLaVA with a SigLIP tower and a Llama language model: 32 x 32 images, 16 tokens each."""
    tokenizer = word_tokenizer(WORDS)
    vision = transformers.SiglipVisionConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, image_size=32, patch_size=8
    )
    config = transformers.LlavaConfig(
        vision_config=vision,
        text_config=LANGUAGES["llama"].tiny(64, 2, len(tokenizer), False),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        image_seq_length=16,
    )
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    images = SiglipImageProcessorPil(size={"height": 32, "width": 32})
    processor = transformers.LlavaProcessor(
        image_processor=images, tokenizer=tokenizer, patch_size=8, vision_feature_select_strategy="full"
    )
    model = _seeded(lambda: transformers.LlavaForConditionalGeneration(config), seed)
    return Tiny(model, processor, _batcher(processor, "<image>", 32, nested=False))


def tiny_smolvlm(*, seed: int = 0, tiles: bool = False) -> Tiny:
    """SmolVLM: 32 x 32 tiles, 4 tokens each after pixel shuffle.

    Args:
        seed: of the weights.
        tiles: split images into four tiles and the whole, as the published model does.
    """
    extra = ["<fake_token_around_image>", "<global-img>", "<end_of_utterance>", "<video>"]
    rows = [f"<row_{r}_col_{c}>" for r in (1, 2) for c in (1, 2)]
    tokenizer = word_tokenizer(WORDS, [*extra, *rows])
    vision = transformers.SmolVLMVisionConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, image_size=32, patch_size=8
    )
    config = transformers.SmolVLMConfig(
        vision_config=vision,
        text_config=LANGUAGES["llama"].tiny(64, 2, len(tokenizer), False),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
    )
    from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

    images = SmolVLMImageProcessorPil(
        size={"longest_edge": 64 if tiles else 32}, max_image_size={"longest_edge": 32}, do_image_splitting=tiles
    )
    kind = without_video(transformers.SmolVLMProcessor)
    processor = kind(image_processor=images, tokenizer=tokenizer, video_processor=None, image_seq_len=4)
    model = _seeded(lambda: transformers.SmolVLMForConditionalGeneration(config), seed)
    return Tiny(model, processor, _batcher(processor, "<image>", 32, nested=True))


def tiny_qwen25vl(*, seed: int = 0) -> Tiny:
    """Qwen2.5-VL: 32 x 32 images, patches of 4, windows of 16 pixels, 2 x 2 patches merged: 16 tokens an image."""
    tokenizer = word_tokenizer(WORDS, QWEN_MARKS)
    start, end, image, video = (int(tokenizer.convert_tokens_to_ids(mark)) for mark in QWEN_MARKS)
    config = transformers.Qwen2_5_VLConfig(
        vision_config={
            "depth": 2,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_heads": 4,
            "patch_size": 4,
            "window_size": 16,
            "out_hidden_size": 64,
            "fullatt_block_indexes": [1],
        },
        text_config={
            **sizes(64, 2, len(tokenizer)),
            "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0},
        },
        vision_start_token_id=start,
        vision_end_token_id=end,
        image_token_id=image,
        video_token_id=video,
    )
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    images = Qwen2VLImageProcessorPil(
        patch_size=4, merge_size=2, size={"shortest_edge": 8 * 8, "longest_edge": 32 * 32}
    )
    kind = without_video(transformers.Qwen2_5_VLProcessor)
    processor = kind(image_processor=images, tokenizer=tokenizer, video_processor=None)
    model = _seeded(lambda: transformers.Qwen2_5_VLForConditionalGeneration(config), seed)
    return Tiny(model, processor, _batcher(processor, QWEN_MARK, 32, nested=False))


def _seeded(make: Callable[[], Any], seed: int) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make().eval()


def _batcher(processor: Any, mark: str, image_size: int, *, nested: bool) -> Callable[..., TinyBatch]:
    def batch(images_per_example: Sequence[int], *, seed: int = 0, padding_side: str = "right") -> TinyBatch:
        counts = list(images_per_example)
        rng = np.random.default_rng(seed)
        texts, groups = [], []
        for index, count in enumerate(counts):
            words = " ".join(rng.choice(WORDS[:16], size=int(rng.integers(3, 9))))
            texts.append(" ".join([mark] * count + [words]))
            groups.append([random_image(1000 * seed + 10 * index + k, image_size, image_size) for k in range(count)])
        images: Any = None
        if sum(counts):
            images = groups if nested else [image for group in groups for image in group]
        options = {"return_tensors": "pt", "padding_side": padding_side}
        if not isinstance(processor, ComposedProcessor):
            options["padding"] = True  # type: ignore[assignment]
        made = processor(text=texts, images=images, **options)
        inputs = {key: value for key, value in made.items() if isinstance(value, torch.Tensor)}
        labels = inputs["input_ids"].clone()
        special = torch.tensor(processor.tokenizer.all_special_ids)
        labels[torch.isin(labels, special) | (inputs["attention_mask"] == 0)] = -100
        return TinyBatch(inputs, labels, counts)

    return batch
