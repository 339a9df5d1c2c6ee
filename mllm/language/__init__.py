"""Language models: a new one is one file here and one line below."""

from __future__ import annotations

from typing import Any

from mllm.language.base import Language
from mllm.language.gemma import Gemma
from mllm.language.llama import Llama
from mllm.language.mamba import Mamba
from mllm.language.minicpm import MiniCpm
from mllm.language.mixtures import Mixtral, Qwen2Moe
from mllm.language.phi import Phi, Phi3
from mllm.language.qwen2 import Qwen2
from mllm.language.stablelm import StableLm
from mllm.language.upcycled import Upcycled
from umbel.errors import ModelError

LANGUAGES: dict[str, Language] = {
    language.name: language
    for language in (
        Llama(),
        Qwen2(),
        Phi(),
        Phi3(),
        Gemma(),
        StableLm(),
        MiniCpm(),
        Mixtral(),
        Qwen2Moe(),
        Mamba(),
        Upcycled(),
    )
}


def language_for(config: Any) -> Language:
    """The language model whose configuration this is.

    Raises:
        ModelError: no registered language model has this ``model_type``.
    """
    for language in LANGUAGES.values():
        if language.matches(config):
            return language
    known = ", ".join(LANGUAGES)
    raise ModelError(f"Language model {config.model_type!r} is unknown to the composed model: choose one of {known}.")
