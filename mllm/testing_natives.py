"""Tiny forms of further families of transformers, with their own processors: whole runs can use them.

Widths are multiples of 64, as in :mod:`mllm.testing`, so every quantization works; images are 32 x 32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import transformers

from mllm.hub_processor import with_placeholders, without_video
from mllm.language.base import sizes
from mllm.testing import QWEN_MARK, QWEN_MARKS, WORDS, Tiny, _batcher, _seeded, tiny_qwen25vl
from mllm.tokenizer import IMAGE, word_tokenizer

_VISION: Mapping[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
_SQUARE = {"height": 32, "width": 32}
_QWEN_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }} : "
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}" + QWEN_MARK + "{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %} {% endfor %}"
    "{% if add_generation_prompt %}assistant :{% endif %}"
)
"""As the published processors write images: the marks around each keep two of them apart.

A bare placeholder and a line end would not: the word tokenizer drops blanks, and positions are counted by runs of
placeholders, so two images that touch would be one.
"""


def _text(tokenizer: Any, kind: str, **more: Any) -> dict[str, Any]:
    return {**sizes(64, 2, len(tokenizer)), "model_type": kind, **more}


def tiny_vipllava(*, seed: int = 0) -> Tiny:
    """ViP-LLaVA: features of two layers of a CLIP tower, 16 tokens an image; LLaVA's processor."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    tokenizer = word_tokenizer(WORDS)
    config = transformers.VipLlavaConfig(
        vision_config={**_VISION, "model_type": "clip_vision_model"},
        text_config=_text(tokenizer, "llama"),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layers=[-1, -2],
        image_seq_length=16,
    )
    images = CLIPImageProcessorPil(size=_SQUARE, crop_size=_SQUARE)
    processor = transformers.LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    model = _seeded(lambda: transformers.VipLlavaForConditionalGeneration(config), seed)
    return Tiny(model, processor, _batcher(processor, "<image>", 32, nested=False))


def tiny_paligemma(*, seed: int = 0) -> Tiny:
    """PaliGemma: a SigLIP tower before Gemma, 16 tokens an image, which all see each other."""
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    tokenizer = word_tokenizer(WORDS)
    images = SiglipImageProcessorPil(size=_SQUARE)
    images.image_seq_length = 16
    processor = transformers.PaliGemmaProcessor(image_processor=images, tokenizer=tokenizer)  # adds its own tokens
    config = transformers.PaliGemmaConfig(
        vision_config={**_VISION, "model_type": "siglip_vision_model", "projection_dim": 64, "vision_use_head": False},
        text_config=_text(tokenizer, "gemma", head_dim=16),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        projection_dim=64,
        hidden_size=64,
    )
    model = _seeded(lambda: transformers.PaliGemmaForConditionalGeneration(config), seed)
    return Tiny(model, processor, _batcher(processor, "<image>", 32, nested=True))


def tiny_gemma3(*, seed: int = 0) -> Tiny:
    """Gemma 3: a SigLIP tower pooled to 4 tokens an image; sliding windows in some layers."""
    import torch
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    marks = ("<start_of_image>", "<end_of_image>")
    tokenizer = word_tokenizer(WORDS, marks, boi_token=marks[0], eoi_token=marks[1], image_token=IMAGE)
    config = transformers.Gemma3Config(
        vision_config={**_VISION, "model_type": "siglip_vision_model", "vision_use_head": False},
        text_config=_text(tokenizer, "gemma3_text", head_dim=16, sliding_window=64),
        mm_tokens_per_image=4,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        boi_token_index=tokenizer.convert_tokens_to_ids(marks[0]),
        eoi_token_index=tokenizer.convert_tokens_to_ids(marks[1]),
    )
    processor = transformers.Gemma3Processor(Gemma3ImageProcessorPil(size=_SQUARE), tokenizer, image_seq_length=4)
    model = _seeded(lambda: transformers.Gemma3ForConditionalGeneration(config), seed)
    weight = model.model.multi_modal_projector.mm_input_projection_weight  # zero when new: images would not matter
    weight.data.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed)) * 0.2)
    return Tiny(model, processor, _batcher(processor, marks[0], 32, nested=True))


def tiny_internvl(*, seed: int = 0) -> Tiny:
    """InternVL: pixel shuffle to 4 tokens an image, Qwen2."""
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

    marks = ("<img>", "</img>", "<IMG_CONTEXT>", "<video>")
    names = ("start_image_token", "end_image_token", "context_image_token", "video_token")
    tokenizer = word_tokenizer(WORDS, marks, **dict(zip(names, marks, strict=True)))
    vision = {**_VISION, "model_type": "internvl_vision", "image_size": [32, 32], "patch_size": [8, 8]}
    config = transformers.InternVLConfig(
        vision_config=vision,
        text_config=_text(tokenizer, "qwen2"),
        image_token_id=tokenizer.convert_tokens_to_ids(marks[2]),
        image_seq_length=4,
        downsample_ratio=0.5,
    )
    images = GotOcr2ImageProcessorPil(size=_SQUARE, crop_to_patches=False)
    kind = without_video(transformers.InternVLProcessor)
    processor = kind(image_processor=images, tokenizer=tokenizer, video_processor=None, image_seq_length=4)
    model = _seeded(lambda: transformers.InternVLForConditionalGeneration(config), seed)
    return Tiny(model, processor, _batcher(processor, marks[2], 32, nested=False))


def tiny_llava_onevision(*, seed: int = 0) -> Tiny:
    """LLaVA-OneVision: an image alone is cut into tiles of 16 patches beside the whole; several are taken whole."""
    from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil

    tokenizer = word_tokenizer(WORDS, ["<video>"])
    grids = [[32, 32], [32, 64], [64, 32], [64, 64]]
    config = transformers.LlavaOnevisionConfig(
        vision_config={**_VISION, "model_type": "siglip_vision_model", "vision_use_head": False},
        text_config=_text(tokenizer, "qwen2"),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=grids,
    )
    images = LlavaOnevisionImageProcessorPil(size=_SQUARE, image_grid_pinpoints=grids)
    processor = without_video(transformers.LlavaOnevisionProcessor)(
        image_processor=images,
        tokenizer=tokenizer,
        video_processor=None,
        num_image_tokens=16,
        vision_feature_select_strategy="full",
    )
    model = _seeded(lambda: transformers.LlavaOnevisionForConditionalGeneration(config), seed)
    return Tiny(model, processor, _batcher(processor, "<image>", 32, nested=True))


def tiny_deepseek_vl(*, seed: int = 0) -> Tiny:
    """DeepSeek-VL: a SigLIP tower and a projector of two layers, 16 tokens an image, Llama."""
    from transformers.models.deepseek_vl.image_processing_pil_deepseek_vl import DeepseekVLImageProcessorPil

    tokenizer = word_tokenizer(WORDS, image_token=IMAGE)
    config = transformers.DeepseekVLConfig(
        vision_config={**_VISION, "model_type": "siglip_vision_model"},
        text_config=_text(tokenizer, "llama"),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        tie_word_embeddings=False,
    )
    images = DeepseekVLImageProcessorPil(size=_SQUARE)
    processor = transformers.DeepseekVLProcessor(images, tokenizer, num_image_tokens=16)
    model = _seeded(lambda: transformers.DeepseekVLForConditionalGeneration(config), seed)
    return Tiny(model, processor, _batcher(processor, "<image>", 32, nested=False))


def tiny_blip2(*, seed: int = 0) -> Tiny:
    """BLIP-2: a Q-Former of 4 queries an image before OPT."""
    import torch
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    tokenizer = word_tokenizer(WORDS)
    dropless = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = transformers.Blip2Config(
        vision_config={**_VISION, "initializer_range": 0.02},
        qformer_config={**_VISION, **dropless, "vocab_size": len(tokenizer), "cross_attention_frequency": 2},
        text_config=_text(tokenizer, "opt", ffn_dim=128, num_key_value_heads=4, word_embed_proj_dim=64, dropout=0.0),
        num_query_tokens=4,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    images = BlipImageProcessorPil(size=_SQUARE)
    processor = with_placeholders(transformers.Blip2Processor)(images, tokenizer, num_query_tokens=4)
    model = _seeded(lambda: transformers.Blip2ForConditionalGeneration(config), seed)
    queries = model.query_tokens  # zero when new: all would be one
    queries.data.copy_(torch.randn(queries.shape, generator=torch.Generator().manual_seed(seed)) * 0.2)
    return Tiny(model, processor, _batcher(processor, "<image>", 32, nested=False))


def tiny_idefics2(*, seed: int = 0) -> Tiny:
    """Idefics2: a perceiver of 4 latents an image, Mistral."""
    from transformers.models.idefics2.image_processing_pil_idefics2 import Idefics2ImageProcessorPil

    tokenizer = word_tokenizer(WORDS, ["<fake_token_around_image>", "<end_of_utterance>"])
    config = transformers.Idefics2Config(
        vision_config={**_VISION, "model_type": "idefics2_vision"},
        text_config=_text(tokenizer, "mistral", sliding_window=None),
        perceiver_config={
            "resampler_n_latents": 4,
            "resampler_depth": 1,
            "resampler_n_heads": 4,
            "resampler_head_dim": 16,
            "num_key_value_heads": 2,
            "hidden_size": 64,
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )
    images = Idefics2ImageProcessorPil(size={"shortest_edge": 32, "longest_edge": 32}, do_image_splitting=False)
    processor = transformers.Idefics2Processor(images, tokenizer, image_seq_len=4)
    model = _seeded(lambda: transformers.Idefics2ForConditionalGeneration(config), seed)
    return Tiny(model, processor, _batcher(processor, "<image>", 32, nested=True))


def tiny_idefics3(*, seed: int = 0) -> Tiny:
    """Idefics3: pixel shuffle to 4 tokens an image, Llama."""
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    tokenizer = word_tokenizer(WORDS, ["<fake_token_around_image>", "<global-img>", "<end_of_utterance>"])
    config = transformers.Idefics3Config(
        vision_config={**_VISION, "model_type": "idefics3_vision"},
        text_config=_text(tokenizer, "llama"),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
    )
    images = Idefics3ImageProcessorPil(
        size={"longest_edge": 32}, max_image_size={"longest_edge": 32}, do_image_splitting=False
    )
    processor = transformers.Idefics3Processor(images, tokenizer, image_seq_len=4)
    model = _seeded(lambda: transformers.Idefics3ForConditionalGeneration(config), seed)
    return Tiny(model, processor, _batcher(processor, "<image>", 32, nested=True))


def _qwen(kind: str, vision: dict[str, Any], text: dict[str, Any], seed: int) -> Tiny:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    tokenizer = word_tokenizer(WORDS, QWEN_MARKS)
    start, end, image, video = (int(tokenizer.convert_tokens_to_ids(mark)) for mark in QWEN_MARKS)
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
    config = getattr(transformers, f"{kind}Config")(
        vision_config=vision,
        text_config={**sizes(64, 2, len(tokenizer)), "rope_parameters": rope, **text},
        vision_start_token_id=start,
        vision_end_token_id=end,
        image_token_id=image,
        video_token_id=video,
    )
    images = Qwen2VLImageProcessorPil(patch_size=4, merge_size=2, size={"shortest_edge": 64, "longest_edge": 1024})
    processor_kind = without_video(getattr(transformers, f"{kind}Processor"))
    processor = processor_kind(image_processor=images, tokenizer=tokenizer, video_processor=None)
    processor.chat_template = _QWEN_TEMPLATE
    model = _seeded(lambda: getattr(transformers, f"{kind}ForConditionalGeneration")(config), seed)
    return Tiny(model, processor, _batcher(processor, QWEN_MARK, 32, nested=False))


def tiny_qwen2vl(*, seed: int = 0) -> Tiny:
    """Qwen2-VL: patches of 4 pixels, 2 x 2 of them a token."""
    vision = {"depth": 2, "embed_dim": 64, "hidden_size": 64, "mlp_ratio": 2, "num_heads": 4, "patch_size": 4}
    return _qwen("Qwen2VL", vision, {}, seed)


def tiny_qwen25vl_asked(*, seed: int = 0) -> Tiny:
    """Qwen2.5-VL of :mod:`mllm.testing`, with the chat template that published ones bring."""
    tiny = tiny_qwen25vl(seed=seed)
    tiny.processor.chat_template = _QWEN_TEMPLATE
    return tiny


def tiny_qwen3vl(*, seed: int = 0) -> Tiny:
    """Qwen3-VL: as Qwen2-VL, with features of an inner layer added to the language model's first layers."""
    vision = {
        "depth": 2,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_heads": 4,
        "patch_size": 4,
        "out_hidden_size": 64,
        "deepstack_visual_indexes": [0],
        "num_position_embeddings": 64,
    }
    return _qwen("Qwen3VL", vision, {"head_dim": 16}, seed)


NATIVES: Mapping[str, Callable[..., Tiny]] = {
    "vipllava": tiny_vipllava,
    "paligemma": tiny_paligemma,
    "gemma3": tiny_gemma3,
    "internvl": tiny_internvl,
    "idefics2": tiny_idefics2,
    "idefics3": tiny_idefics3,
    "qwen2_vl": tiny_qwen2vl,
    "qwen2_5_vl": tiny_qwen25vl_asked,
    "qwen3_vl": tiny_qwen3vl,
    "llava_onevision": tiny_llava_onevision,
    "deepseek_vl": tiny_deepseek_vl,
    "blip_2": tiny_blip2,
}
