"""Checkpoints of the zoo's systems, made up at tiny size in the names and shapes of the published files.

Written from the modules that wrote those files, not from the key maps: each function below lists what such a module's
``state_dict`` holds. Sizes come from the tiny configuration; values are random.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from mllm.config import ComposedConfig
from mllm.testing_layout_parts import (
    Shapes,
    conv,
    hf_dino,
    hf_text,
    hf_vit,
    hub_dino,
    lavis_eva,
    linear,
    mamba_ssm,
    meta_llama,
    mixformer,
    norm,
    open_clip,
    qwen1,
    timm_convnext,
    timm_dino_registers,
    timm_siglip,
    under,
    vary_sam,
)
from mllm.zoo.systems import SYSTEMS
from umbel.errors import ModelError


def _llava(config: ComposedConfig, projector: Shapes, *, tower: bool, moe: bool = False, layers: int = 0) -> Shapes:
    vision: Any = getattr(config.vision_config, "tower_config", config.vision_config)
    inner = "model.image_tower.image_tower." if moe else "model.vision_tower.vision_tower."
    yield from hf_text(config.text_config, moe="deepspeed" if moe else "")
    yield from under("model.mm_projector." + ("image_spatial_proj." if moe else ""), projector)
    yield from under(inner if tower else "", hf_vit(vision, extra_layers=layers))
    if not tower:
        yield "logit_scale", ()
        yield "visual_projection.weight", (32, vision.hidden_size)
        yield "text_model.embeddings.token_embedding.weight", (16, 32)


def _mlp(inputs: int, outputs: int) -> Shapes:
    yield from linear("0", inputs, outputs)
    yield from linear("2", outputs, outputs)


def _plain(tower: bool, moe: bool = False, scales: int = 1, layers: int = 0) -> Callable[[ComposedConfig], Shapes]:
    def make(config: ComposedConfig) -> Shapes:
        vision: Any = getattr(config.vision_config, "tower_config", config.vision_config)
        text: Any = config.text_config
        yield from _llava(
            config, _mlp(scales * vision.hidden_size, text.hidden_size), tower=tower, moe=moe, layers=layers
        )

    return make


def _mobilevlm(config: ComposedConfig) -> Shapes:
    def ldp(inputs: int, w: int) -> Shapes:
        yield from linear("model.mlp.1", inputs, w)
        yield from linear("model.mlp.3", w, w)
        for unit in (1, 2):
            block = f"model.mb_block.{unit}.block."
            yield from conv(block + "0.0", w, w, 3, bias=False, groups=w)
            yield from norm(block + "0.1", w)
            yield from conv(block + "1.fc1", w, 16, 1)  # a quarter of 64
            yield from conv(block + "1.fc2", 16, w, 1)
            yield from conv(block + "2.0", w, w, 1, bias=False)
            yield from norm(block + "2.1", w)

    vision: Any = config.vision_config
    text: Any = config.text_config
    yield from _llava(config, ldp(vision.hidden_size, text.hidden_size), tower=False)


def _mobilevlm_v2(config: ComposedConfig) -> Shapes:
    def ldp(inputs: int, w: int) -> Shapes:
        yield from under("mlp.mlp.", _mlp(inputs, w))
        yield from conv("peg.peg.0", w, w, 3, groups=w)

    vision: Any = config.vision_config
    text: Any = config.text_config
    yield from _llava(config, ldp(vision.hidden_size, text.hidden_size), tower=False)


def _imp(config: ComposedConfig) -> Shapes:
    vision: Any = config.vision_config
    text: Any = config.text_config
    yield from mixformer(text)
    yield from under("transformer.mm_projector.", _mlp(vision.hidden_size, text.hidden_size))
    yield from under("transformer.vision_tower.vision_tower.", hf_vit(vision))


def _mm1(config: ComposedConfig) -> Shapes:
    vision: Any = config.vision_config
    text: Any = config.text_config
    w, hidden, out = vision.hidden_size, config.projector["hidden"], text.hidden_size  # type: ignore[index]
    yield from under("visual.", open_clip(vision))
    yield from under("language_model.", hf_text(text, moe="mixtral"))
    a = "abstractor."
    yield a + "pos_emb", (1, (vision.image_size // vision.patch_size) ** 2, w)
    yield a + "eos_tokens", (1, 1, out)
    for stage in ("net.0.", "net.2."):
        inputs = w if stage == "net.0." else hidden
        block = f"{a}{stage}b1."
        squeezed = round(inputs * 0.25)
        for n, (size, before) in enumerate(((1, inputs), (3, hidden), (1, hidden)), start=1):
            yield from conv(f"{block}conv{n}.conv", before, hidden, size, bias=False)
            yield from norm(f"{block}conv{n}.bn", hidden)
        yield from conv(block + "se.fc1", hidden, squeezed, 1)
        yield from conv(block + "se.fc2", squeezed, hidden, 1)
    yield from under(a + "readout.", _mlp(hidden, out))


def _cobra(config: ComposedConfig) -> Shapes:
    vision: Any = config.vision_config
    text: Any = config.text_config
    first, second = vision.first_config, vision.second_config
    joined = first.hidden_size + second.hidden_size
    yield from under("vision_backbone.dino_featurizer.", timm_dino_registers(first))
    yield from under("vision_backbone.siglip_featurizer.", timm_siglip(second))
    yield from linear("projector.projector.0", joined, 4 * joined)
    yield from linear("projector.projector.2", 4 * joined, text.hidden_size)
    yield from linear("projector.projector.4", text.hidden_size, text.hidden_size)
    yield from under("llm_backbone.llm.", mamba_ssm(text))


def _vl_mamba(config: ComposedConfig) -> Shapes:
    vision: Any = config.vision_config
    text: Any = config.text_config
    w, inner, state = text.hidden_size, 2 * text.hidden_size, 16
    yield from under("vision_tower.", hf_vit(vision))
    yield from mamba_ssm(text)
    m = "mm_projector."
    yield from linear(m + "input_proj", vision.hidden_size, w)
    yield from linear(m + "output_proj", w, w)
    yield from norm(m + "norm", w)
    yield m + "mixer.A_log", (inner, state)
    yield m + "mixer.D", (inner,)
    yield m + "mixer.conv1d.weight", (inner, 1, 4)
    yield m + "mixer.conv1d.bias", (inner,)
    yield from linear(m + "mixer.in_proj", w, 2 * inner, bias=False)
    yield from linear(m + "mixer.x_proj", inner, w // 16 + 2 * state, bias=False)
    yield from linear(m + "mixer.dt_proj", w // 16, inner)
    yield from linear(m + "mixer.out_proj", inner, w, bias=False)


def _mini_gemini(config: ComposedConfig) -> Shapes:
    vision: Any = config.vision_config
    text: Any = config.text_config
    low, fine = vision.first_config.hidden_size, sum(vision.second_config.hidden_sizes)
    yield from hf_text(text)
    yield from under("model.mm_projector.", _mlp(low, text.hidden_size))
    for name, width in (("query", low), ("aux", fine), ("val", fine)):
        yield from norm(f"model.vlm_uni_{name}_projector.0", width)
        yield from linear(f"model.vlm_uni_{name}_projector.1", width, low)
    yield from hf_vit(vision.first_config)
    yield "text_model.final_layer_norm.weight", (32,)
    yield from under("visual.trunk.", timm_convnext(vision.second_config))
    yield "visual.head.proj.weight", (8, 64)
    yield "text.positional_embedding", (7, 8)


def _vary(config: ComposedConfig) -> Shapes:
    vision: Any = config.vision_config
    text: Any = config.text_config
    half = text.hidden_size // 2
    yield from qwen1(text)
    yield from under("transformer.vision_tower.", hf_vit(vision.first_config))
    yield from under("transformer.vision_tower_high.", vary_sam(vision.second_config))
    yield from linear("transformer.mm_projector", vision.first_config.hidden_size, half)
    yield from linear("transformer.mm_projector_vary", vision.second_config.down[-1], half)


def _tinygpt_v(config: ComposedConfig) -> Shapes:
    vision: Any = config.vision_config
    text: Any = config.text_config
    options: Any = config.projector
    w, b = options["width"], "Qformer.bert."
    yield from under("visual_encoder.", lavis_eva(vision))
    yield from norm("ln_vision", vision.hidden_size)
    yield "query_tokens", (1, options["queries"], w)
    yield b + "embeddings.word_embeddings.weight", (9, w)
    yield b + "embeddings.position_embeddings.weight", (9, w)
    yield from norm(b + "embeddings.LayerNorm", w)
    yield from linear("Qformer.cls.predictions.decoder", w, 9)
    for n in range(options["layers"]):
        layer = f"{b}encoder.layer.{n}."
        for attention, width in (("attention", w), *((("crossattention", vision.hidden_size),) if n % 2 == 0 else ())):
            yield from linear(f"{layer}{attention}.self.query", w, w)
            yield from linear(f"{layer}{attention}.self.key", width, w)
            yield from linear(f"{layer}{attention}.self.value", width, w)
            yield from linear(f"{layer}{attention}.output.dense", w, w)
            yield from norm(f"{layer}{attention}.output.LayerNorm", w)
        for branch in ("", "_query"):
            yield from linear(f"{layer}intermediate{branch}.dense", w, 4 * w)
            yield from linear(f"{layer}output{branch}.dense", 4 * w, w)
            yield from norm(f"{layer}output{branch}.LayerNorm", w)
    yield from linear("llama_proj", w, options["hidden"])
    yield from linear("llama_proj2", options["hidden"], text.hidden_size)
    yield from under("llama_model.", hf_text(text))


def _sphinx(config: ComposedConfig) -> Shapes:
    vision: Any = config.vision_config
    text: Any = config.text_config
    first, second = vision.first_config, vision.second_config
    yield from under("llma.openclip_convnext_xxl.", timm_convnext(first))
    yield from under("llma.dinov2_vitg14.", hub_dino(second))
    yield from linear("llma.visual_proj.0", first.hidden_sizes[-1] + second.hidden_size, text.hidden_size)
    yield from norm("llma.visual_proj.1", text.hidden_size)
    yield "llma.start_img", (1, 1, text.hidden_size)
    yield "llma.end_img", (1, 1, text.hidden_size)
    yield from under("llma.", meta_llama(text))


def _llava_gemma(config: ComposedConfig) -> Shapes:
    vision: Any = config.vision_config
    text: Any = config.text_config
    yield from under("vision_tower.", hf_dino(vision))
    yield from linear("multi_modal_projector.linear_1", vision.hidden_size, text.hidden_size)
    yield from linear("multi_modal_projector.linear_2", text.hidden_size, text.hidden_size)
    yield from under("language_model.", hf_text(text))


def _minicpm_v(config: ComposedConfig) -> Shapes:
    vision: Any = config.vision_config
    text: Any = config.text_config
    w, queries = text.hidden_size, config.projector["side"] ** 2  # type: ignore[index]
    yield from under("vpm.", timm_siglip(vision, pooled=False))
    yield from under("llm.", hf_text(text))
    r = "resampler."
    yield r + "pos_embed", (queries, w)
    yield r + "query", (queries, w)
    yield r + "proj", (w, w)
    yield from linear(r + "kv_proj", vision.hidden_size, w, bias=False)
    yield r + "attn.in_proj_weight", (3 * w, w)
    yield r + "attn.in_proj_bias", (3 * w,)
    yield from linear(r + "attn.out_proj", w, w)
    for name in ("ln_q", "ln_kv", "ln_post"):
        yield from norm(r + name, w)


def _deepseek_vl(config: ComposedConfig) -> Shapes:
    vision: Any = config.vision_config
    text: Any = config.text_config
    yield from under("vision_model.vision_tower.", timm_siglip(vision))
    yield from under("aligner.layers.", _mlp(vision.hidden_size, text.hidden_size))
    yield from under("language_model.", hf_text(text))


def _moondream(config: ComposedConfig) -> Shapes:
    vision: Any = config.vision_config
    text: Any = config.text_config
    hidden = config.projector["hidden"] or text.hidden_size  # type: ignore[index]
    yield from under("vision_encoder.encoder.model.visual.", timm_siglip(vision, linear_patches=True, pooled=False))
    yield from linear("vision_encoder.projection.mlp.fc1", vision.hidden_size, hidden)
    yield from linear("vision_encoder.projection.mlp.fc2", hidden, text.hidden_size)
    yield from under("text_model.", mixformer(text))


LAYOUTS: Mapping[str, Callable[[ComposedConfig], Shapes]] = {
    "mobilevlm": _mobilevlm,
    "mobilevlm-v2": _mobilevlm_v2,
    "llava-phi": _plain(tower=False),
    "imp-v1": _imp,
    "tinyllava": _plain(tower=False),
    "bunny-v1": _plain(tower=True, layers=1),
    "bunny-v1.1-4b": _plain(tower=True, scales=3),
    "moe-llava": _plain(tower=True, moe=True),
    "mm1-3b-moe": _mm1,
    "cobra": _cobra,
    "vl-mamba": _vl_mamba,
    "mini-gemini": _mini_gemini,
    "vary-toy": _vary,
    "tinygpt-v": _tinygpt_v,
    "sphinx-tiny": _sphinx,
    "allava-longer": _plain(tower=True),
    "llava-gemma": _llava_gemma,
    "mipha": _plain(tower=True),
    "minicpm-v-2": _minicpm_v,
    "deepseek-vl": _deepseek_vl,
    "karmavlm": _plain(tower=False),
    "moondream2": _moondream,
}


def synthetic_checkpoint(system: str, config: ComposedConfig, seed: int = 0) -> dict[str, Tensor]:
    """Random tensors in the published layout of ``system``.

    Args:
        system: one of the zoo's.
        config: its tiny configuration.
        seed: of the values.

    Raises:
        ModelError: the system is unknown.
    """
    if system not in LAYOUTS:
        raise ModelError(f"System {system!r} is not in the zoo: choose one of {', '.join(SYSTEMS)}.")
    generator = torch.Generator().manual_seed(seed)
    made: dict[str, Tensor] = {}
    for name, shape in LAYOUTS[system](config):
        made[name] = torch.randn(shape, generator=generator) * 0.05
    for name in [key for key in made if key.endswith("backbone.embedding.weight")]:
        made[name.replace("backbone.embedding", "lm_head")] = made[name].clone()
    return made
