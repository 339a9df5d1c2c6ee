"""Published vision towers: their sizes and their pixels' statistics. A tiny one has the same architecture.

Sizes are those of the configuration files and papers named beside each; images come normalised by ``mean``, ``std``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mllm.encoders import ENCODERS
from mllm.encoders.pair import PairConfig
from mllm.encoders.s2 import S2Config
from mllm.encoders.sam import SamTowerConfig
from umbel.errors import ModelError

Statistics = tuple[tuple[float, float, float], tuple[float, float, float]]
CLIP: Statistics = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
HALF: Statistics = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
IMAGENET: Statistics = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


FLAGS = ("join_stages", "norm_last", "use_swiglu_ffn")
"""Options that are architecture, not size: the tiny tower has them too."""


@dataclass(frozen=True)
class Tower:
    """One tower: encoder by name, options of its transformers configuration, statistics of its pixels."""

    encoder: str
    statistics: Statistics
    options: Mapping[str, Any] = field(default_factory=dict)
    tiny_size: int = 32

    def config(self, size: str) -> Any:
        """Its configuration, ``full`` or ``tiny`` (width 64, two layers)."""
        encoder = ENCODERS[self.encoder]
        made = encoder.tiny(64, 2, self.tiny_size) if size == "tiny" else _config(encoder.model_type, self.options)
        for flag in FLAGS:
            if self.options.get(flag):
                setattr(made, flag, True)
        return made


def _vit(width: int, inner: int, layers: int, heads: int, image: int, patch: int, **more: Any) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "image_size": image,
        "patch_size": patch,
        **more,
    }


def _config(model_type: str, options: Mapping[str, Any]) -> Any:
    from transformers import CONFIG_MAPPING, Blip2VisionConfig, SamVisionConfig

    known = {key: value for key, value in options.items() if key not in ("join_stages", "norm_last", "down")}
    if model_type == SamTowerConfig.model_type:
        return SamTowerConfig(sam_config=SamVisionConfig(**known), down=options.get("down", ()))
    kind = Blip2VisionConfig if model_type == "blip_2_vision_model" else CONFIG_MAPPING[model_type]
    return kind(**known)


TOWERS: dict[str, Tower] = {
    # openai/clip-vit-large-patch14(-336)
    "clip-l-336": Tower("clip", CLIP, _vit(1024, 4096, 24, 16, 336, 14)),
    "clip-l-224": Tower("clip", CLIP, _vit(1024, 4096, 24, 16, 224, 14)),
    # Mini-Gemini looks at the low resolution with the same tower; tiny, its image is half the pair's.
    "clip-l-336-low": Tower("clip", CLIP, _vit(1024, 4096, 24, 16, 336, 14), tiny_size=16),
    # apple/DFN5B-CLIP-ViT-H-14-378
    "clip-h-378": Tower("clip", CLIP, _vit(1280, 5120, 32, 16, 378, 14, hidden_act="quick_gelu")),
    # google/siglip-so400m-patch14-384; LLaVA-style training drops the last layer from the tower
    "siglip-so-384": Tower("siglip", HALF, _vit(1152, 4304, 27, 16, 384, 14)),
    "siglip-so-384-cut": Tower("siglip", HALF, _vit(1152, 4304, 26, 16, 384, 14)),
    "siglip-so-384-base": Tower("siglip", HALF, _vit(1152, 4304, 27, 16, 384, 14), tiny_size=16),
    "siglip-so-448-cut": Tower("siglip", HALF, _vit(1152, 4304, 26, 16, 448, 14)),
    "siglip-so-378": Tower("siglip", HALF, _vit(1152, 4304, 27, 16, 378, 14)),
    # google/siglip-large-patch16-384
    "siglip-l-384": Tower("siglip", HALF, _vit(1024, 4096, 24, 16, 384, 16)),
    # facebook/dinov2-large, dinov2-with-registers-large, dinov2-giant
    "dinov2-l-224": Tower("dinov2", IMAGENET, _dinov2 := {
        "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "image_size": 224, "patch_size": 14,
    }),
    "dinov2-l-registers-384": Tower("dinov2-registers", IMAGENET, {**_dinov2, "image_size": 384}),
    "dinov2-g-224": Tower("dinov2", IMAGENET, {
        **_dinov2, "hidden_size": 1536, "num_hidden_layers": 40, "num_attention_heads": 24, "use_swiglu_ffn": True,
    }),
    # laion/CLIP-convnext_large_d_320 and convnext_xxlarge
    "convnext-l-768": Tower("convnext", CLIP, {
        "hidden_sizes": [192, 384, 768, 1536], "depths": [3, 3, 27, 3], "image_size": 768, "join_stages": True,
    }),
    "convnext-xxl-512": Tower("convnext", CLIP, {
        "hidden_sizes": [384, 768, 1536, 3072], "depths": [3, 4, 30, 3], "image_size": 512, "norm_last": True,
    }),
    # BLIP-2's EVA ViT-g/14
    "eva-g-448": Tower("eva", CLIP, _vit(1408, 6144, 39, 16, 448, 14)),
    # SAM ViT-B with Vary's two convolutions
    "sam-b-1024": Tower("sam", CLIP, {
        "hidden_size": 768, "mlp_dim": 3072, "num_hidden_layers": 12, "num_attention_heads": 12, "image_size": 1024,
        "patch_size": 16, "window_size": 14, "global_attn_indexes": [2, 5, 8, 11], "output_channels": 256,
        "down": [512, 1024],
    }),
}  # fmt: skip


def tower(name: str, size: str) -> Any:
    """Configuration of a published tower.

    Raises:
        ModelError: none has this name.
    """
    if name not in TOWERS:
        raise ModelError(f"Vision tower {name!r} is not in the zoo: choose one of {', '.join(TOWERS)}.")
    return TOWERS[name].config(size)


def pair(towers: tuple[str, ...], size: str, join: str, layers: tuple[int, ...]) -> PairConfig:
    """Two published towers as one, the second's pixels normalised from the first's."""
    first, second = towers
    (mean1, std1), (mean2, std2) = TOWERS[first].statistics, TOWERS[second].statistics
    return PairConfig(
        first_config=tower(first, size),
        second_config=tower(second, size),
        join=join,
        first_layer=layers[0],
        second_layer=layers[1],
        second_scale=[a / b for a, b in zip(std1, std2, strict=True)],
        second_shift=[(a - b) / s for a, b, s in zip(mean1, mean2, std2, strict=True)],
    )


def multi_scale(name: str, size: str, scales: list[int], layer: int = -1) -> S2Config:
    """A published tower at several scales."""
    return S2Config(tower_config=tower(name, size), scales=scales, layer=layer)
