"""Key maps of vision towers, from the layouts they are published in to transformers' classes as they are today.

Sources of the namings: transformers' own checkpoints (CLIP, SigLIP, DINOv2); timm/models/vision_transformer.py and
timm/models/convnext.py of huggingface/pytorch-image-models (timm and OpenCLIP trunks); src/open_clip/transformer.py of
mlfoundations/open_clip; dinov2/layers of facebookresearch/dinov2 (hub); segment_anything/modeling/image_encoder.py of
facebookresearch/segment-anything with net_2 and net_3 of Ucas-HaoranWei/Vary-toy; lavis/models/eva_vit.py of
salesforce/LAVIS. OpenCLIP's and timm's were written from knowledge of these files, not compared with a download.
"""

from __future__ import annotations

from mllm.zoo.keys.rules import (
    KeyMap,
    class_position,
    move,
    query_value_bias,
    reshape,
    skip,
    split,
    under,
    zeros,
)

_LAYER = "encoder.layers.{i}."
_QKV = tuple(f"{_LAYER}self_attn.{name}_proj." for name in "qkv")

HF_VIT: KeyMap = (
    skip("{rest}position_ids", "a constant"),
    skip("vision_model.head.{rest}", "the pooling head, which image tokens do not pass"),
    move("vision_model.encoder.{rest}", "encoder.{rest}", beyond=True),
    move("vision_model.{rest}", "{rest}"),
)
"""CLIP and SigLIP as transformers saved them up to version 4."""

HF_CLIP_REST: KeyMap = (
    skip("text_model.{rest}", "the text tower"),
    skip("visual_projection.{rest}", "the contrastive head"),
    skip("text_projection.{rest}", "the contrastive head"),
    skip("logit_scale", "the contrastive head"),
    skip("logit_bias", "the contrastive head"),
)
"""What a whole CLIP or SigLIP checkpoint has beside the vision tower."""

TIMM_SIGLIP: KeyMap = (
    reshape("pos_embed", "embeddings.position_embedding.weight"),
    move("patch_embed.proj.{p}", "embeddings.patch_embedding.{p}"),
    split("blocks.{i}.attn.qkv.weight", *(f"{name}weight" for name in _QKV), beyond=True),
    split("blocks.{i}.attn.qkv.bias", *(f"{name}bias" for name in _QKV), beyond=True),
    move("blocks.{i}.attn.proj.{p}", f"{_LAYER}self_attn.out_proj.{{p}}", beyond=True),
    move("blocks.{i}.norm1.{p}", f"{_LAYER}layer_norm1.{{p}}", beyond=True),
    move("blocks.{i}.norm2.{p}", f"{_LAYER}layer_norm2.{{p}}", beyond=True),
    move("blocks.{i}.mlp.fc1.{p}", f"{_LAYER}mlp.fc1.{{p}}", beyond=True),
    move("blocks.{i}.mlp.fc2.{p}", f"{_LAYER}mlp.fc2.{{p}}", beyond=True),
    move("norm.{p}", "post_layernorm.{p}"),
    skip("attn_pool.{rest}", "the pooling head, which image tokens do not pass"),
)
MOONDREAM_SIGLIP: KeyMap = (reshape("patch_embed.linear.{p}", "embeddings.patch_embedding.{p}"), *TIMM_SIGLIP)
"""moondream cuts patches itself, channel first, so that its linear layer is the convolution."""

_DINO = "encoder.layer.{i}."
_DINO_QKV = tuple(f"{_DINO}attention.{name}_proj." for name in "qkv")
_DINO_BLOCKS: KeyMap = (
    split("blocks.{i}.attn.qkv.weight", *(f"{name}weight" for name in _DINO_QKV)),
    split("blocks.{i}.attn.qkv.bias", *(f"{name}bias" for name in _DINO_QKV)),
    move("blocks.{i}.attn.proj.{p}", f"{_DINO}attention.o_proj.{{p}}"),
    move("blocks.{i}.norm1.{p}", f"{_DINO}norm1.{{p}}"),
    move("blocks.{i}.norm2.{p}", f"{_DINO}norm2.{{p}}"),
    move("blocks.{i}.ls1.gamma", f"{_DINO}layer_scale1.lambda1"),
    move("blocks.{i}.ls2.gamma", f"{_DINO}layer_scale2.lambda1"),
    move("blocks.{i}.mlp.fc1.{p}", f"{_DINO}mlp.fc1.{{p}}"),
    move("blocks.{i}.mlp.fc2.{p}", f"{_DINO}mlp.fc2.{{p}}"),
    split("blocks.{i}.mlp.w12.{p}", f"{_DINO}mlp.gate_proj.{{p}}", f"{_DINO}mlp.up_proj.{{p}}"),
    move("blocks.{i}.mlp.w3.{p}", f"{_DINO}mlp.down_proj.{{p}}"),
    move("cls_token", "embeddings.cls_token"),
    move("patch_embed.proj.{p}", "embeddings.patch_embeddings.projection.{p}"),
    move("norm.{p}", "layernorm.{p}"),
)
HUB_DINO: KeyMap = (
    *_DINO_BLOCKS,
    move("pos_embed", "embeddings.position_embeddings"),
    move("register_tokens", "embeddings.register_tokens"),
    move("mask_token", "embeddings.mask_token"),
)
"""DINOv2 as torch.hub gives it."""
TIMM_DINO_REGISTERS: KeyMap = (
    *_DINO_BLOCKS,
    class_position("pos_embed", "embeddings.position_embeddings"),
    move("reg_token", "embeddings.register_tokens"),
    zeros("embeddings.mask_token", "only used where patches are masked"),
)
"""timm adds the CLS token's position to the token itself."""

HF_DINO: KeyMap = (
    *(
        move(f"{_DINO}attention.attention.{old}.{{p}}", f"{_DINO}attention.{new}.{{p}}")
        for old, new in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj"))
    ),
    move(f"{_DINO}attention.output.dense.{{p}}", f"{_DINO}attention.o_proj.{{p}}"),
    move("encoder.{rest}", "encoder.{rest}"),
    move("embeddings.{rest}", "embeddings.{rest}"),
    move("layernorm.{p}", "layernorm.{p}"),
)
"""DINOv2 as transformers saved it up to version 4."""

OPEN_CLIP: KeyMap = (
    move("class_embedding", "embeddings.class_embedding"),
    move("positional_embedding", "embeddings.position_embedding.weight"),
    move("conv1.weight", "embeddings.patch_embedding.weight"),
    move("ln_pre.{p}", "pre_layrnorm.{p}"),
    move("ln_post.{p}", "post_layernorm.{p}"),
    skip("proj", "the contrastive head"),
    split("transformer.resblocks.{i}.attn.in_proj_weight", *(f"{name}weight" for name in _QKV)),
    split("transformer.resblocks.{i}.attn.in_proj_bias", *(f"{name}bias" for name in _QKV)),
    move("transformer.resblocks.{i}.attn.out_proj.{p}", f"{_LAYER}self_attn.out_proj.{{p}}"),
    move("transformer.resblocks.{i}.ln_1.{p}", f"{_LAYER}layer_norm1.{{p}}"),
    move("transformer.resblocks.{i}.ln_2.{p}", f"{_LAYER}layer_norm2.{{p}}"),
    move("transformer.resblocks.{i}.mlp.c_fc.{p}", f"{_LAYER}mlp.fc1.{{p}}"),
    move("transformer.resblocks.{i}.mlp.c_proj.{p}", f"{_LAYER}mlp.fc2.{{p}}"),
)

_STAGE = "encoder.stages.{i}."
_BLOCK = _STAGE + "layers.{j}."
TIMM_CONVNEXT: KeyMap = (
    move("stem.0.{p}", "embeddings.patch_embeddings.{p}"),
    move("stem.1.{p}", "embeddings.layernorm.{p}"),
    move("stages.{i}.downsample.{j}.{p}", _STAGE + "downsampling_layer.{j}.{p}"),
    move("stages.{i}.blocks.{j}.gamma", _BLOCK + "layer_scale_parameter"),
    move("stages.{i}.blocks.{j}.conv_dw.{p}", _BLOCK + "dwconv.{p}"),
    move("stages.{i}.blocks.{j}.norm.{p}", _BLOCK + "layernorm.{p}"),
    move("stages.{i}.blocks.{j}.mlp.fc1.{p}", _BLOCK + "pwconv1.{p}"),
    move("stages.{i}.blocks.{j}.mlp.fc2.{p}", _BLOCK + "pwconv2.{p}"),
    move("head.norm.{p}", "layernorm.{p}"),
)

_EVA = "encoder.layers.{i}."
LAVIS_EVA: KeyMap = (
    move("cls_token", "embeddings.class_embedding"),
    move("pos_embed", "embeddings.position_embedding"),
    move("patch_embed.proj.{p}", "embeddings.patch_embedding.{p}"),
    move("blocks.{i}.attn.qkv.weight", _EVA + "self_attn.qkv.weight"),
    query_value_bias(("blocks.{i}.attn.q_bias", "blocks.{i}.attn.v_bias"), _EVA + "self_attn.qkv.bias"),
    move("blocks.{i}.attn.proj.{p}", _EVA + "self_attn.projection.{p}"),
    move("blocks.{i}.norm1.{p}", _EVA + "layer_norm1.{p}"),
    move("blocks.{i}.norm2.{p}", _EVA + "layer_norm2.{p}"),
    move("blocks.{i}.mlp.fc1.{p}", _EVA + "mlp.fc1.{p}"),
    move("blocks.{i}.mlp.fc2.{p}", _EVA + "mlp.fc2.{p}"),
)

_SAM = "layers.{i}."
META_SAM: KeyMap = under(
    (
        move("pos_embed", "pos_embed"),
        move("patch_embed.proj.{p}", "patch_embed.projection.{p}"),
        move("blocks.{i}.norm1.{p}", _SAM + "layer_norm1.{p}"),
        move("blocks.{i}.norm2.{p}", _SAM + "layer_norm2.{p}"),
        move("blocks.{i}.attn.{rest}", _SAM + "attn.{rest}"),
        move("blocks.{i}.mlp.{rest}", _SAM + "mlp.{rest}"),
        move("neck.0.weight", "neck.conv1.weight"),
        move("neck.1.{p}", "neck.layer_norm1.{p}"),
        move("neck.2.weight", "neck.conv2.weight"),
        move("neck.3.{p}", "neck.layer_norm2.{p}"),
    ),
    target="sam.vision_encoder.",
)
VARY_SAM: KeyMap = (*META_SAM, move("net_2.weight", "down.0.weight"), move("net_3.weight", "down.1.weight"))
