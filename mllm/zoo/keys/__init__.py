"""How each system's published checkpoint becomes a model here: a new one is one entry in :data:`KEYS`.

Where the files of a system were read: MobileVLM (Meituan-AutoML/MobileVLM, mobilevlm/model), Vary-toy
(Ucas-HaoranWei/Vary-toy, vary/model/vary_toy_qwen1_8.py), Cobra (h-zhao1997/cobra, cobra/models/vlms/cobra.py and
cobra/util/nn_utils.py), Mini-Gemini (dvlab-research/MGM, mgm/model/mgm_arch.py and openclip_encoder.py), SPHINX-Tiny
(Alpha-VLLM/LLaMA2-Accessory, accessory/model/LLM/llama_ens5_light.py), MM1's C-Abstractor (khanrc/honeybee), moondream2
(vikhyat/moondream, weights.py of its torch port), TinyLLaVA's newer names and MoE-LLaVA's ``image_spatial_proj`` (in
scripts that convert such checkpoints), DeepSeek-VL's ``aligner`` (in loaders of such checkpoints). Written without a
file to compare with: LLaVA-Phi, Imp, Bunny, ALLaVA, Mipha, KarmaVLM (all built on LLaVA, whose names they are given
here), TinyGPT-V's outer names, and VL-Mamba, of which nothing is published. A checkpoint that differs is refused with
the keys that differ; it never loads in part.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mllm.zoo.keys import projectors, texts, towers
from mllm.zoo.keys.rules import KeyMap, Rule, move, skip, under

_L, _V, _P = "language_model.", "vision_tower.", "projector."


def _llava(
    projector: KeyMap = projectors.SEQUENTIAL,
    text: KeyMap = texts.HF,
    tower: str = _V,
    inner: str = "model.vision_tower.vision_tower.",
    between: str = "model.mm_projector.",
) -> KeyMap:
    """A checkpoint in LLaVA's layout, the tower inside or in a checkpoint of its own."""
    return (
        *under(towers.HF_VIT, inner, tower),
        *under(projector, between, _P),
        *under(text, "", _L),
        *under(towers.HF_VIT, "", tower),
        *towers.HF_CLIP_REST,
    )


def _tinyllava(config: Any) -> KeyMap:
    return (
        *_llava(),
        *under(towers.HF_VIT, "vision_tower._vision_tower.", _V),
        *under(projectors.SEQUENTIAL, "connector._connector.", _P),
        *under(texts.HF, "language_model.", _L),
    )


def _imp(config: Any) -> KeyMap:
    return (
        *under(towers.HF_VIT, "transformer.vision_tower.vision_tower.", _V),
        *under(projectors.SEQUENTIAL, "transformer.mm_projector.", _P),
        *under(texts.MIXFORMER, "", _L),
    )


def _mm1(config: Any) -> KeyMap:
    blocks = int(config.projector["blocks"])
    return (
        *under(towers.OPEN_CLIP, "visual.", _V),
        *under(projectors.honeybee(blocks), "abstractor.", _P),
        *under(texts.MIXTRAL_MOE, "language_model.", _L),
    )


def _cobra(config: Any) -> KeyMap:
    return (
        *under(towers.TIMM_DINO_REGISTERS, "vision_backbone.dino_featurizer.", _V + "first."),
        *under(towers.TIMM_SIGLIP, "vision_backbone.siglip_featurizer.", _V + "second."),
        *under(projectors.SEQUENTIAL, "projector.projector.", _P),
        *under(texts.MAMBA_SSM, "llm_backbone.llm.", _L),
    )


def _vl_mamba(config: Any) -> KeyMap:
    ours: KeyMap = (move("{rest}", "{rest}"),)
    return (
        *under(towers.HF_VIT, "vision_tower.", _V),
        *under(ours, "mm_projector.", _P),
        *under(texts.MAMBA_SSM, "", _L),
    )


def _mini_gemini(config: Any) -> KeyMap:
    mined = (("query", "query"), ("aux", "key"), ("val", "value"))
    return (
        *(
            move(f"model.vlm_uni_{theirs}_projector.{{i}}.{{p}}", f"{_V}mining.{ours}.{{i}}.{{p}}")
            for theirs, ours in mined
        ),
        *under(towers.TIMM_CONVNEXT, "model.vision_tower_aux.vision_", _V + "second."),
        *under(towers.TIMM_CONVNEXT, "visual.trunk.", _V + "second."),
        skip("visual.head.{rest}", "the contrastive head"),
        skip("text.{rest}", "the text tower"),
        *_llava(tower=_V + "first."),
    )


def _vary(config: Any) -> KeyMap:
    return (
        *under(towers.HF_VIT, "transformer.vision_tower.", _V + "first."),
        *under(towers.VARY_SAM, "transformer.vision_tower_high.", _V + "second."),
        move("transformer.mm_projector.{p}", _P + "linears.0.{p}"),
        move("transformer.mm_projector_vary.{p}", _P + "linears.1.{p}"),
        *under(texts.QWEN1, "", _L),
    )


def _tinygpt_v(config: Any) -> KeyMap:
    return (
        *under(towers.LAVIS_EVA, "visual_encoder.", _V),
        move("ln_vision.{p}", _V + "post_layernorm.{p}"),
        *under(projectors.LAVIS_QFORMER, "", _P),
        move("llama_proj.{p}", _P + "linears.0.{p}"),
        move("llama_proj2.{p}", _P + "linears.1.{p}"),
        *under(texts.HF, "llama_model.", _L),
    )


def _sphinx(config: Any) -> KeyMap:
    text = config.text_config
    return (
        *under(towers.TIMM_CONVNEXT, "llma.openclip_convnext_xxl.", _V + "first."),
        *under(towers.HUB_DINO, "llma.dinov2_vitg14.", _V + "second."),
        *under(projectors.SEQUENTIAL, "llma.visual_proj.", _P),
        skip("llma.start_img", "a mark before the image, which the prompt has here"),
        skip("llma.end_img", "a mark after the image, which the prompt has here"),
        *under(texts.meta_llama(text.hidden_size // text.num_attention_heads), "llma.", _L),
    )


def _llava_gemma(config: Any) -> KeyMap:
    return (
        *under(towers.HF_VIT, "vision_tower.", _V),
        *under(towers.HF_DINO, "vision_tower.", _V),
        move("multi_modal_projector.linear_1.{p}", _P + "0.{p}"),
        move("multi_modal_projector.linear_2.{p}", _P + "2.{p}"),
        *under(texts.HF, "language_model.", _L),
    )


def _minicpm_v(config: Any) -> KeyMap:
    return (
        *under(towers.TIMM_SIGLIP, "vpm.", _V),
        *under(projectors.MINICPM_RESAMPLER, "resampler.", _P),
        *under(texts.HF, "llm.", _L),
    )


def _deepseek_vl(config: Any) -> KeyMap:
    return (
        *under(towers.TIMM_SIGLIP, "vision_model.vision_tower.", _V),
        *under(projectors.SEQUENTIAL, "aligner.layers.", _P),
        *under(texts.HF, "language_model.", _L),
    )


def _moondream(config: Any) -> KeyMap:
    return (
        *under(towers.MOONDREAM_SIGLIP, "vision_encoder.encoder.model.visual.", _V),
        move("vision_encoder.projection.mlp.fc1.{p}", _P + "0.{p}"),
        move("vision_encoder.projection.mlp.fc2.{p}", _P + "2.{p}"),
        *under(texts.MIXFORMER, "text_model.", _L),
    )


def _always(keys: KeyMap) -> Callable[[Any], KeyMap]:
    return lambda config: keys


KEYS: dict[str, Callable[[Any], KeyMap]] = {
    "mobilevlm": _always(_llava(projectors.LDP)),
    "mobilevlm-v2": _always(_llava(projectors.LDP_V2)),
    "llava-phi": _always(_llava()),
    "imp-v1": _imp,
    "tinyllava": _tinyllava,
    "bunny-v1": _always(_llava()),
    "bunny-v1.1-4b": _always(_llava(tower=_V + "tower.")),
    "moe-llava": _always(
        _llava(
            text=texts.DEEPSPEED_MOE,
            inner="model.image_tower.image_tower.",
            between="model.mm_projector.image_spatial_proj.",
        )
    ),
    "mm1-3b-moe": _mm1,
    "cobra": _cobra,
    "vl-mamba": _vl_mamba,
    "mini-gemini": _mini_gemini,
    "vary-toy": _vary,
    "tinygpt-v": _tinygpt_v,
    "sphinx-tiny": _sphinx,
    "allava-longer": _always(_llava()),
    "llava-gemma": _llava_gemma,
    "mipha": _always(_llava()),
    "minicpm-v-2": _minicpm_v,
    "deepseek-vl": _deepseek_vl,
    "karmavlm": _always(_llava()),
    "moondream2": _moondream,
}
"""By system: from its composed configuration to its key map."""

__all__ = ["KEYS", "KeyMap", "Rule"]
