"""Key maps of language models.

Sources of the namings: transformers' own checkpoints (Llama, Phi, Phi-3, Gemma, Qwen2, MiniCPM); modeling_phi.py that
was published with microsoft/phi-1_5 and is repeated in vikhyat/moondream (``mixer.Wqkv``); modeling_qwen.py of
QwenLM/Qwen (``a1 = w1(x)``, ``a1 * silu(w2(x))``: w2 is the gate); mamba_ssm/models/mixer_seq_simple.py of
state-spaces/mamba; accessory/model/LLM/llama.py of Alpha-VLLM/LLaMA2-Accessory (Meta's names); DeepSpeed's
deepspeed/moe as MoE-LLaVA's moellava/model/language_model/llava_phi_moe.py builds it; Mixtral's checkpoints.
"""

from __future__ import annotations

from mllm.zoo.keys.rules import KeyMap, interleaved_rotary, move, skip, split

HF: KeyMap = (
    skip("{rest}rotary_emb.inv_freq", "a constant"),
    move("model.embed_tokens.weight", "model.embed_tokens.weight"),
    move("model.layers.{rest}", "model.layers.{rest}"),
    move("model.norm.{p}", "model.norm.{p}"),
    move("model.final_layernorm.{p}", "model.final_layernorm.{p}"),
    move("lm_head.{p}", "lm_head.{p}"),
)
"""What transformers' causal models save."""

_MOE = "model.layers.{i}.mlp."
DEEPSPEED_MOE: KeyMap = (
    move(_MOE + "deepspeed_moe.gate.wg.weight", _MOE + "router"),
    move(_MOE + "deepspeed_moe.experts.deepspeed_experts.{j}.{rest}", _MOE + "experts.{j}.{rest}"),
    *HF,
)
"""Upcycled feed-forwards of MoE-LLaVA."""

_SPARSE = "model.layers.{i}.block_sparse_moe."
MIXTRAL_MOE: KeyMap = (
    move(_SPARSE + "gate.weight", _MOE + "router"),
    move(_SPARSE + "experts.{j}.w1.weight", _MOE + "experts.{j}.gate_proj.weight"),
    move(_SPARSE + "experts.{j}.w3.weight", _MOE + "experts.{j}.up_proj.weight"),
    move(_SPARSE + "experts.{j}.w2.weight", _MOE + "experts.{j}.down_proj.weight"),
    *HF,
)
"""Mixtral's names for a mixture in some layers."""

_ATTENTION = "model.layers.{i}.self_attn."
MIXFORMER: KeyMap = (
    move("transformer.embd.wte.weight", "model.embed_tokens.weight"),
    move("transformer.h.{i}.ln.{p}", "model.layers.{i}.input_layernorm.{p}"),
    split("transformer.h.{i}.mixer.Wqkv.{p}", *(f"{_ATTENTION}{name}_proj.{{p}}" for name in "qkv")),
    move("transformer.h.{i}.mixer.out_proj.{p}", _ATTENTION + "dense.{p}"),
    move("transformer.h.{i}.mlp.{rest}", "model.layers.{i}.mlp.{rest}"),
    skip("transformer.h.{i}.mixer.rotary_emb.{rest}", "a constant"),
    move("lm_head.ln.{p}", "model.final_layernorm.{p}"),
    move("lm_head.linear.{p}", "lm_head.{p}"),
)
"""Phi as Microsoft first published it, queries, keys and values in one matrix."""

QWEN1: KeyMap = (
    move("transformer.wte.weight", "model.embed_tokens.weight"),
    move("transformer.h.{i}.ln_1.weight", "model.layers.{i}.input_layernorm.weight"),
    move("transformer.h.{i}.ln_2.weight", "model.layers.{i}.post_attention_layernorm.weight"),
    split("transformer.h.{i}.attn.c_attn.{p}", *(f"{_ATTENTION}{name}_proj.{{p}}" for name in "qkv")),
    move("transformer.h.{i}.attn.c_proj.weight", _ATTENTION + "o_proj.weight"),
    move("transformer.h.{i}.mlp.w1.weight", "model.layers.{i}.mlp.up_proj.weight"),
    move("transformer.h.{i}.mlp.w2.weight", "model.layers.{i}.mlp.gate_proj.weight"),
    move("transformer.h.{i}.mlp.c_proj.weight", "model.layers.{i}.mlp.down_proj.weight"),
    move("transformer.ln_f.weight", "model.norm.weight"),
    move("lm_head.weight", "lm_head.weight"),
)
"""Qwen of the first generation into Qwen2's class."""

MAMBA_SSM: KeyMap = (
    move("backbone.embedding.weight", "backbone.embeddings.weight"),
    move("backbone.layers.{rest}", "backbone.layers.{rest}"),
    move("backbone.norm_f.weight", "backbone.norm_f.weight"),
    move("lm_head.weight", "lm_head.weight"),
)


def meta_llama(head: int) -> KeyMap:
    """Llama in Meta's names, whose rotary pairs lie side by side; ``head`` is the width of an attention head."""
    return (
        move("tok_embeddings.weight", "model.embed_tokens.weight"),
        interleaved_rotary("layers.{i}.attention.wq.weight", _ATTENTION + "q_proj.weight", head),
        interleaved_rotary("layers.{i}.attention.wk.weight", _ATTENTION + "k_proj.weight", head),
        move("layers.{i}.attention.wv.weight", _ATTENTION + "v_proj.weight"),
        move("layers.{i}.attention.wo.weight", _ATTENTION + "o_proj.weight"),
        move("layers.{i}.feed_forward.w1.weight", "model.layers.{i}.mlp.gate_proj.weight"),
        move("layers.{i}.feed_forward.w3.weight", "model.layers.{i}.mlp.up_proj.weight"),
        move("layers.{i}.feed_forward.w2.weight", "model.layers.{i}.mlp.down_proj.weight"),
        move("layers.{i}.attention_norm.weight", "model.layers.{i}.input_layernorm.weight"),
        move("layers.{i}.ffn_norm.weight", "model.layers.{i}.post_attention_layernorm.weight"),
        move("norm.weight", "model.norm.weight"),
        move("output.weight", "lm_head.weight"),
    )
