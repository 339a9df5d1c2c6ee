"""Full configurations of the families that transformers has itself, to count them without their weights.

Each holds the sizes in the ``config.json`` beside the published weights that :data:`mllm.zoo.native.NATIVE` names,
where they differ from transformers' defaults. They were written from knowledge of those files, not beside them; what
vouches for them is a test: each gives as many parameters as the family's page states, in all the digits that
:mod:`mllm.zoo.native` holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import transformers

from mllm.zoo.native import NATIVE
from umbel.errors import ModelError

_CLIP_336 = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 768,
}
_SO400M = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "patch_size": 14,
}
_INTERNVIT = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": [448, 448],
    "patch_size": [14, 14],
}


def _text(width: int, inner: int, layers: int, heads: int, groups: int, words: int, **more: Any) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "vocab_size": words,
        **more,
    }


_VICUNA = _text(4096, 11008, 32, 32, 32, 32064, model_type="llama")
_QWEN2_5_ROPE = {"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1e6}

_CONFIGS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "llava": ("Llava", {"vision_config": _CLIP_336, "text_config": _VICUNA}),
    "vipllava": (
        "VipLlava",
        {"vision_config": _CLIP_336, "text_config": _VICUNA, "vision_feature_layers": [-2, -5, -8, -11, 6]},
    ),
    "smolvlm": (
        "SmolVLM",
        {
            "vision_config": {
                "hidden_size": 768,
                "intermediate_size": 3072,
                "num_hidden_layers": 12,
                "num_attention_heads": 12,
                "image_size": 512,
                "patch_size": 16,
            },
            "text_config": _text(576, 1536, 30, 9, 3, 49280, model_type="llama", pad_token_id=2),
            "scale_factor": 4,
            "tie_word_embeddings": False,
        },
    ),
    "idefics2": (
        "Idefics2",
        {
            "vision_config": {**_SO400M, "image_size": 980},
            "text_config": _text(4096, 14336, 32, 32, 8, 32003, model_type="mistral", pad_token_id=0),
            "perceiver_config": {
                "hidden_size": 4096,
                "resampler_n_latents": 64,
                "resampler_depth": 3,
                "resampler_n_heads": 16,
                "resampler_head_dim": 96,
                "num_key_value_heads": 4,
            },
        },
    ),
    "idefics3": (
        "Idefics3",
        {
            "vision_config": {**_SO400M, "image_size": 364},
            "text_config": _text(4096, 14336, 32, 32, 8, 128259, model_type="llama", pad_token_id=128002),
            "scale_factor": 2,
            "tie_word_embeddings": False,
        },
    ),
    "paligemma": (
        "PaliGemma",
        {
            "vision_config": {
                **_SO400M,
                "model_type": "siglip_vision_model",
                "image_size": 224,
                "projection_dim": 2048,
                "vision_use_head": False,
            },
            "text_config": _text(2048, 16384, 18, 8, 1, 257216, model_type="gemma", head_dim=256),
            "projection_dim": 2048,
            "hidden_size": 2048,
        },
    ),
    "gemma3": (
        "Gemma3",
        {
            "vision_config": {
                **_SO400M,
                "model_type": "siglip_vision_model",
                "image_size": 896,
                "vision_use_head": False,
            },
            "text_config": _text(2560, 10240, 34, 8, 4, 262208, model_type="gemma3_text", head_dim=256),
        },
    ),
    "internvl": (
        "InternVL",
        {
            "vision_config": {**_INTERNVIT, "model_type": "internvl_vision"},
            "text_config": _text(896, 4864, 24, 14, 2, 151674, model_type="qwen2", tie_word_embeddings=False),
            "tie_word_embeddings": False,
        },
    ),
    "qwen2_vl": (
        "Qwen2VL",
        {
            "vision_config": {"depth": 32, "embed_dim": 1280, "hidden_size": 1536, "num_heads": 16, "patch_size": 14},
            "text_config": _text(1536, 8960, 28, 12, 2, 151936, rope_parameters=_QWEN2_5_ROPE),
            "tie_word_embeddings": True,
        },
    ),
    "qwen2_5_vl": (
        "Qwen2_5_VL",
        {
            "vision_config": {
                "depth": 32,
                "hidden_size": 1280,
                "intermediate_size": 3420,
                "num_heads": 16,
                "out_hidden_size": 2048,
                "patch_size": 14,
            },
            "text_config": _text(2048, 11008, 36, 16, 2, 151936, rope_parameters=_QWEN2_5_ROPE),
            "tie_word_embeddings": True,
        },
    ),
    "qwen3_vl": (
        "Qwen3VL",
        {
            "vision_config": {
                "depth": 24,
                "hidden_size": 1024,
                "intermediate_size": 4096,
                "num_heads": 16,
                "out_hidden_size": 2048,
                "patch_size": 16,
                "num_position_embeddings": 2304,
                "deepstack_visual_indexes": [5, 11, 17],
            },
            "text_config": _text(2048, 6144, 28, 16, 8, 151936, head_dim=128),
            "tie_word_embeddings": True,
        },
    ),
    "llava_onevision": (
        "LlavaOnevision",
        {
            "vision_config": {
                **_SO400M,
                "model_type": "siglip_vision_model",
                "num_hidden_layers": 26,
                "image_size": 384,
                "vision_use_head": False,
            },
            "text_config": _text(896, 4864, 24, 14, 2, 152000, model_type="qwen2", tie_word_embeddings=True),
            "tie_word_embeddings": True,
        },
    ),
    "deepseek_vl": (
        "DeepseekVL",
        {
            "vision_config": {
                "model_type": "siglip_vision_model",
                "hidden_size": 1024,
                "intermediate_size": 4096,
                "num_hidden_layers": 24,
                "num_attention_heads": 16,
                "image_size": 384,
                "patch_size": 16,
            },
            "text_config": _text(2048, 5504, 24, 16, 16, 102400, model_type="llama"),
            "tie_word_embeddings": False,
        },
    ),
    "blip_2": (
        "Blip2",
        {
            "text_config": {
                "model_type": "opt",
                "hidden_size": 2560,
                "ffn_dim": 10240,
                "num_hidden_layers": 32,
                "num_attention_heads": 32,
                "word_embed_proj_dim": 2560,
                "vocab_size": 50304,
            },
            "image_token_index": 50265,
        },
    ),
}


def native_config(name: str) -> Any:
    """The transformers configuration of the published model of a family.

    Raises:
        ModelError: the family is not in the zoo.
    """
    if name not in _CONFIGS:
        raise ModelError(f"Family {name!r} is not in the zoo: choose one of {', '.join(NATIVE)}.")
    kind, options = _CONFIGS[name]
    return getattr(transformers, f"{kind}Config")(**options)
