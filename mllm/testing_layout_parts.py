"""State dictionaries of published towers and language models: names and shapes, as the modules that saved them have it.

Pieces of :mod:`mllm.testing_layouts`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Shapes = Iterator[tuple[str, tuple[int, ...]]]


def linear(name: str, inputs: int, outputs: int, bias: bool = True) -> Shapes:
    """A linear layer."""
    yield f"{name}.weight", (outputs, inputs)
    if bias:
        yield f"{name}.bias", (outputs,)


def norm(name: str, width: int, bias: bool = True) -> Shapes:
    """A norm."""
    yield f"{name}.weight", (width,)
    if bias:
        yield f"{name}.bias", (width,)


def conv(name: str, inputs: int, outputs: int, size: int, bias: bool = True, groups: int = 1) -> Shapes:
    """A convolution."""
    yield f"{name}.weight", (outputs, inputs // groups, size, size)
    if bias:
        yield f"{name}.bias", (outputs,)


def under(prefix: str, shapes: Shapes) -> Shapes:
    """The same with a prefix."""
    for name, shape in shapes:
        yield prefix + name, shape


def hf_vit(config: Any, *, extra_layers: int = 0) -> Shapes:
    """``CLIPVisionModel`` and ``SiglipVisionModel`` of transformers 4."""
    w, clip, root = config.hidden_size, config.model_type == "clip_vision_model", "vision_model."
    patches = (config.image_size // config.patch_size) ** 2
    if clip:
        yield root + "embeddings.class_embedding", (w,)
        yield from norm(root + "pre_layrnorm", w)
    yield root + "embeddings.position_embedding.weight", (patches + clip, w)
    yield root + "embeddings.position_ids", (1, patches + clip)
    yield from conv(root + "embeddings.patch_embedding", 3, w, config.patch_size, bias=not clip)
    for n in range(config.num_hidden_layers + extra_layers):
        layer = f"{root}encoder.layers.{n}."
        for name in ("k_proj", "v_proj", "q_proj", "out_proj"):
            yield from linear(f"{layer}self_attn.{name}", w, w)
        yield from norm(layer + "layer_norm1", w)
        yield from norm(layer + "layer_norm2", w)
        yield from linear(layer + "mlp.fc1", w, config.intermediate_size)
        yield from linear(layer + "mlp.fc2", config.intermediate_size, w)
    yield from norm(root + "post_layernorm", w)
    if not clip:
        yield root + "head.probe", (1, 1, w)
        yield root + "head.attention.in_proj_weight", (3 * w, w)


def _timm_block(block: str, w: int, inner: int) -> Shapes:
    yield from norm(block + "norm1", w)
    yield from linear(block + "attn.qkv", w, 3 * w)
    yield from linear(block + "attn.proj", w, w)
    yield from norm(block + "norm2", w)
    yield from linear(block + "mlp.fc1", w, inner)
    yield from linear(block + "mlp.fc2", inner, w)


def timm_siglip(config: Any, *, linear_patches: bool = False, pooled: bool = True, layers: int = 0) -> Shapes:
    """timm's ``VisionTransformer`` as SigLIP: no CLS token, attention pooling."""
    w, patch = config.hidden_size, config.patch_size
    yield "pos_embed", (1, (config.image_size // patch) ** 2, w)
    if linear_patches:
        yield from linear("patch_embed.linear", 3 * patch * patch, w)
    else:
        yield from conv("patch_embed.proj", 3, w, patch)
    for n in range(layers or config.num_hidden_layers):
        yield from _timm_block(f"blocks.{n}.", w, config.intermediate_size)
    yield from norm("norm", w)
    if pooled:
        yield "attn_pool.latent", (1, 1, w)
        yield from linear("attn_pool.q", w, w)


def _dino_common(config: Any) -> Shapes:
    w = config.hidden_size
    yield "cls_token", (1, 1, w)
    yield from conv("patch_embed.proj", 3, w, config.patch_size)
    for n in range(config.num_hidden_layers):
        block = f"blocks.{n}."
        inner = int(w * config.mlp_ratio)
        if config.use_swiglu_ffn:
            hidden = (int(inner * 2 / 3) + 7) // 8 * 8
            plain = dict(_timm_block(block, w, inner))
            yield from ((name, shape) for name, shape in plain.items() if ".mlp." not in name)
            yield from linear(block + "mlp.w12", w, 2 * hidden)
            yield from linear(block + "mlp.w3", hidden, w)
        else:
            yield from _timm_block(block, w, inner)
        yield block + "ls1.gamma", (w,)
        yield block + "ls2.gamma", (w,)
    yield from norm("norm", w)


def timm_dino_registers(config: Any) -> Shapes:
    """timm's ``vit_large_patch14_reg4_dinov2``: positions of patches alone."""
    yield from _dino_common(config)
    yield "reg_token", (1, config.num_register_tokens, config.hidden_size)
    yield "pos_embed", (1, (config.image_size // config.patch_size) ** 2, config.hidden_size)


def hub_dino(config: Any) -> Shapes:
    """facebookresearch/dinov2 through torch.hub."""
    yield from _dino_common(config)
    yield "mask_token", (1, config.hidden_size)
    yield "pos_embed", (1, 1 + (config.image_size // config.patch_size) ** 2, config.hidden_size)


def hf_dino(config: Any) -> Shapes:
    """``Dinov2Model`` of transformers 4."""
    w = config.hidden_size
    yield "embeddings.cls_token", (1, 1, w)
    yield "embeddings.mask_token", (1, w)
    yield "embeddings.position_embeddings", (1, 1 + (config.image_size // config.patch_size) ** 2, w)
    yield from conv("embeddings.patch_embeddings.projection", 3, w, config.patch_size)
    for n in range(config.num_hidden_layers):
        layer = f"encoder.layer.{n}."
        yield from norm(layer + "norm1", w)
        for name in ("query", "key", "value"):
            yield from linear(f"{layer}attention.attention.{name}", w, w)
        yield from linear(layer + "attention.output.dense", w, w)
        yield layer + "layer_scale1.lambda1", (w,)
        yield from norm(layer + "norm2", w)
        yield from linear(layer + "mlp.fc1", w, int(w * config.mlp_ratio))
        yield from linear(layer + "mlp.fc2", int(w * config.mlp_ratio), w)
        yield layer + "layer_scale2.lambda1", (w,)
    yield from norm("layernorm", w)


def open_clip(config: Any) -> Shapes:
    """``VisionTransformer`` of open_clip."""
    w = config.hidden_size
    yield "class_embedding", (w,)
    yield "positional_embedding", ((config.image_size // config.patch_size) ** 2 + 1, w)
    yield "proj", (w, 32)
    yield "conv1.weight", (w, 3, config.patch_size, config.patch_size)
    yield from norm("ln_pre", w)
    yield from norm("ln_post", w)
    for n in range(config.num_hidden_layers):
        block = f"transformer.resblocks.{n}."
        yield from norm(block + "ln_1", w)
        yield from norm(block + "ln_2", w)
        yield block + "attn.in_proj_weight", (3 * w, w)
        yield block + "attn.in_proj_bias", (3 * w,)
        yield from linear(block + "attn.out_proj", w, w)
        yield from linear(block + "mlp.c_fc", w, config.intermediate_size)
        yield from linear(block + "mlp.c_proj", config.intermediate_size, w)


def timm_convnext(config: Any) -> Shapes:
    """timm's ``ConvNeXt``."""
    widths = config.hidden_sizes
    yield from conv("stem.0", 3, widths[0], config.patch_size)
    yield from norm("stem.1", widths[0])
    for stage, (width, depth) in enumerate(zip(widths, config.depths, strict=True)):
        if stage:
            yield from norm(f"stages.{stage}.downsample.0", widths[stage - 1])
            yield from conv(f"stages.{stage}.downsample.1", widths[stage - 1], width, 2)
        for n in range(depth):
            block = f"stages.{stage}.blocks.{n}."
            yield block + "gamma", (width,)
            yield from conv(block + "conv_dw", width, width, 7, groups=width)
            yield from norm(block + "norm", width)
            yield from linear(block + "mlp.fc1", width, 4 * width)
            yield from linear(block + "mlp.fc2", 4 * width, width)
    yield from norm("head.norm", widths[-1])


def lavis_eva(config: Any) -> Shapes:
    """``VisionTransformer`` of LAVIS's eva_vit: biases of queries and values only."""
    w = config.hidden_size
    yield "cls_token", (1, 1, w)
    yield "pos_embed", (1, 1 + (config.image_size // config.patch_size) ** 2, w)
    yield from conv("patch_embed.proj", 3, w, config.patch_size)
    for n in range(config.num_hidden_layers):
        block = f"blocks.{n}."
        for name, shape in _timm_block(block, w, config.intermediate_size):
            if not name.endswith("attn.qkv.bias"):
                yield name, shape
        yield block + "attn.q_bias", (w,)
        yield block + "attn.v_bias", (w,)


def vary_sam(config: Any) -> Shapes:
    """``ImageEncoderViT`` of Segment Anything with Vary's further convolutions."""
    sam = config.sam_config
    w, side = sam.hidden_size, sam.image_size // sam.patch_size
    yield "pos_embed", (1, side, side, w)
    yield from conv("patch_embed.proj", 3, w, sam.patch_size)
    for n in range(sam.num_hidden_layers):
        block = f"blocks.{n}."
        reach = side if n in sam.global_attn_indexes else sam.window_size
        yield from norm(block + "norm1", w)
        yield block + "attn.rel_pos_h", (2 * reach - 1, w // sam.num_attention_heads)
        yield block + "attn.rel_pos_w", (2 * reach - 1, w // sam.num_attention_heads)
        yield from linear(block + "attn.qkv", w, 3 * w)
        yield from linear(block + "attn.proj", w, w)
        yield from norm(block + "norm2", w)
        yield from linear(block + "mlp.lin1", w, sam.mlp_dim)
        yield from linear(block + "mlp.lin2", sam.mlp_dim, w)
    c = sam.output_channels
    yield from conv("neck.0", w, c, 1, bias=False)
    yield from norm("neck.1", c)
    yield from conv("neck.2", c, c, 3, bias=False)
    yield from norm("neck.3", c)
    for n, width in enumerate(config.down):
        yield from conv(f"net_{n + 2}", c, width, 3, bias=False)
        c = width


def hf_text(config: Any, *, moe: str = "") -> Shapes:
    """Causal models of transformers: Phi, Phi-3, and what shares Llama's layout."""
    w, inner, kind = config.hidden_size, config.intermediate_size, config.model_type
    head = getattr(config, "head_dim", None) or w // config.num_attention_heads
    q, kv = config.num_attention_heads * head, config.num_key_value_heads * head
    sparse = getattr(config, "upcycle", None) or {"layers": [], "experts": 0}
    yield "model.embed_tokens.weight", (config.vocab_size, w)
    for n in range(config.num_hidden_layers):
        layer, experts = f"model.layers.{n}.", sparse["experts"] if n in sparse["layers"] else 0
        if kind == "phi":
            yield from norm(layer + "input_layernorm", w)
            for name, width in (("q_proj", q), ("k_proj", kv), ("v_proj", kv)):
                yield from linear(f"{layer}self_attn.{name}", w, width)
            yield from linear(layer + "self_attn.dense", q, w)
            for mlp in _experts(layer, experts, moe):
                yield from linear(mlp + "fc1", w, inner)
                yield from linear(mlp + "fc2", inner, w)
        else:
            yield from norm(layer + "input_layernorm", w, bias=False)
            yield from norm(layer + "post_attention_layernorm", w, bias=False)
            yield from linear(layer + "self_attn.o_proj", q, w, bias=False)
            if kind == "phi3":
                yield from linear(layer + "self_attn.qkv_proj", w, q + 2 * kv, bias=False)
                yield from linear(layer + "mlp.gate_up_proj", w, 2 * inner, bias=False)
                yield from linear(layer + "mlp.down_proj", inner, w, bias=False)
                continue
            for name, width in (("q_proj", q), ("k_proj", kv), ("v_proj", kv)):
                yield from linear(f"{layer}self_attn.{name}", w, width, bias=kind == "qwen2")
            names = ("w1", "w3", "w2") if experts and moe == "mixtral" else ("gate_proj", "up_proj", "down_proj")
            for mlp in _experts(layer, experts, moe):
                yield from linear(mlp + names[0], w, inner, bias=False)
                yield from linear(mlp + names[1], w, inner, bias=False)
                yield from linear(mlp + names[2], inner, w, bias=False)
        if experts:
            gate = "mlp.deepspeed_moe.gate.wg.weight" if moe == "deepspeed" else "block_sparse_moe.gate.weight"
            yield layer + gate, (experts, w)
    yield from norm("model.final_layernorm" if kind == "phi" else "model.norm", w, bias=kind == "phi")
    if not config.tie_word_embeddings:
        yield from linear("lm_head", w, config.vocab_size, bias=kind == "phi")


def _experts(layer: str, experts: int, moe: str) -> list[str]:
    if not experts:
        return [layer + "mlp."]
    if moe == "deepspeed":
        return [f"{layer}mlp.deepspeed_moe.experts.deepspeed_experts.{n}." for n in range(experts)]
    return [f"{layer}block_sparse_moe.experts.{n}." for n in range(experts)]


def mixformer(config: Any) -> Shapes:
    """Microsoft's first Phi: ``transformer.h.N.mixer.Wqkv``."""
    w = config.hidden_size
    yield "transformer.embd.wte.weight", (config.vocab_size, w)
    for n in range(config.num_hidden_layers):
        block = f"transformer.h.{n}."
        yield from norm(block + "ln", w)
        yield from linear(block + "mixer.Wqkv", w, 3 * w)
        yield from linear(block + "mixer.out_proj", w, w)
        yield from linear(block + "mlp.fc1", w, config.intermediate_size)
        yield from linear(block + "mlp.fc2", config.intermediate_size, w)
    yield from norm("lm_head.ln", w)
    yield from linear("lm_head.linear", w, config.vocab_size)


def qwen1(config: Any) -> Shapes:
    """``QWenLMHeadModel``."""
    w, inner = config.hidden_size, config.intermediate_size
    yield "transformer.wte.weight", (config.vocab_size, w)
    for n in range(config.num_hidden_layers):
        block = f"transformer.h.{n}."
        yield from norm(block + "ln_1", w, bias=False)
        yield from norm(block + "ln_2", w, bias=False)
        yield from linear(block + "attn.c_attn", w, 3 * w)
        yield from linear(block + "attn.c_proj", w, w, bias=False)
        yield from linear(block + "mlp.w1", w, inner, bias=False)
        yield from linear(block + "mlp.w2", w, inner, bias=False)
        yield from linear(block + "mlp.c_proj", inner, w, bias=False)
    yield from norm("transformer.ln_f", w, bias=False)
    yield from linear("lm_head", w, config.vocab_size, bias=False)


def mamba_ssm(config: Any) -> Shapes:
    """``MambaLMHeadModel`` of state-spaces/mamba; the head is saved though it is the embedding."""
    w, inner, rank, state = config.hidden_size, config.intermediate_size, config.time_step_rank, config.state_size
    yield "backbone.embedding.weight", (config.vocab_size, w)
    for n in range(config.num_hidden_layers):
        layer = f"backbone.layers.{n}."
        yield from norm(layer + "norm", w, bias=False)
        yield layer + "mixer.A_log", (inner, state)
        yield layer + "mixer.D", (inner,)
        yield layer + "mixer.conv1d.weight", (inner, 1, config.conv_kernel)
        yield layer + "mixer.conv1d.bias", (inner,)
        yield from linear(layer + "mixer.in_proj", w, 2 * inner, bias=False)
        yield from linear(layer + "mixer.x_proj", inner, rank + 2 * state, bias=False)
        yield from linear(layer + "mixer.dt_proj", rank, inner)
        yield from linear(layer + "mixer.out_proj", inner, w, bias=False)
    yield from norm("backbone.norm_f", w, bias=False)
    yield "lm_head.weight", (config.vocab_size, w)


def meta_llama(config: Any) -> Shapes:
    """``Transformer`` of LLaMA2-Accessory."""
    w, inner, head = config.hidden_size, config.intermediate_size, config.hidden_size // config.num_attention_heads
    yield "tok_embeddings.weight", (config.vocab_size, w)
    for n in range(config.num_hidden_layers):
        layer = f"layers.{n}."
        yield from linear(layer + "attention.wq", w, w, bias=False)
        yield from linear(layer + "attention.wk", w, config.num_key_value_heads * head, bias=False)
        yield from linear(layer + "attention.wv", w, config.num_key_value_heads * head, bias=False)
        yield from linear(layer + "attention.wo", w, w, bias=False)
        yield from linear(layer + "feed_forward.w1", w, inner, bias=False)
        yield from linear(layer + "feed_forward.w2", inner, w, bias=False)
        yield from linear(layer + "feed_forward.w3", w, inner, bias=False)
        yield from norm(layer + "attention_norm", w, bias=False)
        yield from norm(layer + "ffn_norm", w, bias=False)
    yield from norm("norm", w, bias=False)
    yield from linear("output", w, config.vocab_size, bias=False)
