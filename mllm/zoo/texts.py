"""Published language models: their sizes. A tiny one has the same architecture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mllm.language import LANGUAGES
from mllm.language.minicpm import minicpm_config
from umbel.errors import ModelError


@dataclass(frozen=True)
class Text:
    """One language model: its kind by name, and options of its transformers configuration."""

    language: str
    options: Mapping[str, Any]

    def config(self, size: str, vocabulary: int) -> Any:
        """Its configuration, ``full`` or ``tiny`` (width 64, two layers, ``vocabulary`` words)."""
        language, tie = LANGUAGES[self.language], bool(self.options.get("tie_word_embeddings"))
        if size == "tiny":
            upcycle = self.options.get("upcycle")
            dense = LANGUAGES[self.options["dense"]] if upcycle else language
            made = dense.tiny(64, 2, vocabulary, tie)
            if upcycle:
                made.upcycle = {"experts": 3, "top_k": upcycle["top_k"], "layers": [0]}
            if "num_attention_heads" in self.options:
                groups, heads = self.options["num_key_value_heads"], self.options["num_attention_heads"]
                made.num_key_value_heads = max(1, 4 * groups // heads)
            return made
        if self.language == "minicpm":
            return minicpm_config(**self.options)
        from transformers import CONFIG_MAPPING

        dense = self.options.get("dense", self.language)
        known = {key: value for key, value in self.options.items() if key not in ("dense", "upcycle")}
        made = CONFIG_MAPPING[LANGUAGES[dense].model_type](**known)
        if "upcycle" in self.options:
            made.upcycle = dict(self.options["upcycle"])
        return made


def _sizes(
    width: int, inner: int, layers: int, heads: int, vocabulary: int, groups: int = 0, **more: Any
) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": groups or heads,
        "vocab_size": vocabulary,
        **more,
    }


def _rotary(share: float) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": share}}


_PHI2 = _sizes(
    2560, 10240, 32, 32, 51200, max_position_embeddings=2048, bos_token_id=50256, eos_token_id=50256, **_rotary(0.4)
)
TEXTS: dict[str, Text] = {
    "phi-2": Text("phi", _PHI2),  # microsoft/phi-2
    "phi-1.5": Text("phi", {**_PHI2, **_sizes(2048, 8192, 24, 32, 51200), **_rotary(0.5)}),  # microsoft/phi-1_5
    "phi-3-mini": Text("phi3", _sizes(3072, 8192, 32, 32, 32064, max_position_embeddings=4096)),
    "mobilellama-1.4b": Text("llama", _sizes(2048, 5632, 24, 16, 32000)),  # mtgv/MobileLLaMA-1.4B-Base
    "mobilellama-2.7b": Text("llama", _sizes(2560, 6912, 32, 32, 32000)),  # mtgv/MobileLLaMA-2.7B-Base
    "tinyllama-1.1b": Text("llama", _sizes(2048, 5632, 22, 32, 32000, 4)),
    "deepseek-1.3b": Text("llama", _sizes(2048, 5504, 24, 16, 102400, bos_token_id=100000, eos_token_id=100001)),
    "gemma-2b": Text("gemma", _sizes(2048, 16384, 18, 8, 256000, 1, head_dim=256, tie_word_embeddings=True)),
    "qwen-1.8b": Text("qwen2", _sizes(2048, 5504, 24, 16, 151860, bos_token_id=151643, eos_token_id=151643)),
    "qwen1.5-0.5b": Text(
        "qwen2", _sizes(1024, 2816, 24, 16, 151936, tie_word_embeddings=True, bos_token_id=151643, eos_token_id=151645)
    ),
    "minicpm-2.4b": Text("minicpm", _sizes(2304, 5760, 40, 36, 122753, tie_word_embeddings=True)),
    "mamba-2.8b": Text(
        "mamba",
        {
            "hidden_size": 2560,
            "num_hidden_layers": 64,
            "state_size": 16,
            "vocab_size": 50280,
            "tie_word_embeddings": True,
        },
    ),
    "phi-2-4e": Text(
        "upcycled", {**_PHI2, "dense": "phi", "upcycle": {"experts": 4, "top_k": 2, "layers": list(range(0, 32, 2))}}
    ),
    # McKinzie et al. 2024 give 64 experts, two a token, in every second layer; the other sizes are not published and
    # are chosen here so that the total is the 64 billion that the paper names.
    "mm1-3b-64e": Text(
        "upcycled",
        {
            **_sizes(2560, 8192, 32, 32, 32000),
            "dense": "llama",
            "upcycle": {"experts": 64, "top_k": 2, "layers": list(range(0, 32, 2))},
        },
    ),
}


def text(name: str, size: str, vocabulary: int) -> Any:
    """Configuration of a published language model; ``vocabulary`` is the tiny one's.

    Raises:
        ModelError: none has this name.
    """
    if name not in TEXTS:
        raise ModelError(f"Language model {name!r} is not in the zoo: choose one of {', '.join(TEXTS)}.")
    return TEXTS[name].config(size, vocabulary)
