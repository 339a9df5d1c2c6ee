"""Key maps of projectors.

Sources of the namings: LLaVA's ``mm_projector`` (llava/model/multimodal_projector/builder.py of haotian-liu/LLaVA);
mobilevlm/model/vision_projector.py of Meituan-AutoML/MobileVLM, with torchvision's InvertedResidual; LDPv2 as that file
has it since its second version; honeybee/projectors/projectors.py of khanrc/honeybee with timm's RegStage;
Qformer.py of salesforce/LAVIS (its prefix checked in files that load such checkpoints); resampler.py that is published
with openbmb/MiniCPM-V-2 (names checked in loaders of such checkpoints).
"""

from __future__ import annotations

from mllm.zoo.keys.rules import KeyMap, move, skip, split

SEQUENTIAL: KeyMap = (move("{i}.{p}", "{i}.{p}"),)
"""A torch.nn.Sequential of the same order."""


def _ldp_unit(published: int, here: int) -> KeyMap:
    block, unit = f"model.mb_block.{published}.block.", f"units.{here}."
    return (
        move(block + "0.0.weight", unit + "depthwise.weight"),
        move(block + "0.1.{p}", unit + "norm1.{p}"),
        move(block + "1.fc1.{p}", unit + "excite.fc1.{p}"),
        move(block + "1.fc2.{p}", unit + "excite.fc2.{p}"),
        move(block + "2.0.weight", unit + "pointwise.weight"),
        move(block + "2.1.{p}", unit + "norm2.{p}"),
    )


LDP: KeyMap = (
    move("model.mlp.1.{p}", "mlp.0.{p}"),
    move("model.mlp.3.{p}", "mlp.2.{p}"),
    *_ldp_unit(1, 0),
    *_ldp_unit(2, 1),
)
LDP_V2: KeyMap = (move("mlp.mlp.{i}.{p}", "mlp.{i}.{p}"), move("peg.peg.0.{p}", "position.{p}"))


def _reg_stage(published: str, here: str, blocks: int) -> KeyMap:
    rules: list[KeyMap] = []
    for number in range(blocks):
        b, block = f"{published}b{number + 1}.", f"{here}.{number}."
        rules.append(
            (
                *(move(f"{b}conv{n}.conv.weight", f"{block}conv{n}.conv.weight") for n in (1, 2, 3)),
                *(move(f"{b}conv{n}.bn.{{p}}", f"{block}conv{n}.norm.{{p}}") for n in (1, 2, 3)),
                move(b + "se.fc1.{p}", block + "squeeze.{p}"),
                move(b + "se.fc2.{p}", block + "excite.{p}"),
                move(b + "downsample.conv.weight", block + "shortcut.conv.weight"),
                move(b + "downsample.bn.{p}", block + "shortcut.norm.{p}"),
            )
        )
    return tuple(rule for group in rules for rule in group)


def honeybee(blocks: int) -> KeyMap:
    """The C-Abstractor with ``blocks`` blocks on each side of its pooling."""
    return (
        move("pos_emb", "position"),
        skip("eos_tokens", "a token after the image, which the prompt has here"),
        *_reg_stage("net.0.", "before", blocks),
        *_reg_stage("net.2.", "after", blocks),
        move("readout.{i}.{p}", "readout.{i}.{p}"),
    )


_OURS = "qformer.encoder.layer.{i}."
_THEIRS = "Qformer.bert.encoder.layer.{i}."
LAVIS_QFORMER: KeyMap = (
    move("query_tokens", "query"),
    move("Qformer.bert.embeddings.LayerNorm.{p}", "qformer.layernorm.{p}"),
    move(_THEIRS + "attention.self.{rest}", _OURS + "attention.attention.{rest}"),
    move(_THEIRS + "attention.output.{rest}", _OURS + "attention.output.{rest}"),
    move(_THEIRS + "crossattention.self.{rest}", _OURS + "crossattention.attention.{rest}"),
    move(_THEIRS + "crossattention.output.{rest}", _OURS + "crossattention.output.{rest}"),
    move(_THEIRS + "intermediate_query.{rest}", _OURS + "intermediate_query.{rest}"),
    move(_THEIRS + "output_query.{rest}", _OURS + "output_query.{rest}"),
    skip(_THEIRS + "intermediate.{rest}", "the branch of text, which queries do not pass"),
    skip(_THEIRS + "output.{rest}", "the branch of text, which queries do not pass"),
    skip("Qformer.bert.embeddings.{rest}", "embeddings of text"),
    skip("Qformer.cls.{rest}", "the head of text"),
)

MINICPM_RESAMPLER: KeyMap = (
    skip("pos_embed", "recomputed: sine and cosine"),
    move("query", "query"),
    move("proj", "proj"),
    move("kv_proj.weight", "kv_proj.weight"),
    split("attn.in_proj_weight", *(f"attn.{name}_proj.weight" for name in "qkv")),
    split("attn.in_proj_bias", *(f"attn.{name}_proj.bias" for name in "qkv")),
    move("attn.out_proj.{p}", "attn.out_proj.{p}"),
    move("ln_q.{p}", "ln_q.{p}"),
    move("ln_kv.{p}", "ln_kv.{p}"),
    move("ln_post.{p}", "ln_post.{p}"),
)
