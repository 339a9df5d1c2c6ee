"""Families that transformers has itself: the general path, beside the systems that are composed here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Native:
    """A family that AutoModelForImageTextToText loads.

    Attributes:
        name: what ``model.name`` says, and of the tiny maker in :mod:`mllm.testing_families`.
        title: a published model of the family.
        hub: its hub id.
        licence: of its published weights; from memory, to be checked on its page before use.
        parameters: in billions, as published.
        tokens: image tokens of one view of an image at its usual size, or "varies".
        processor: whether the tiny form has a processor, so that whole runs can use it.
    """

    name: str
    title: str
    hub: str
    licence: str
    parameters: float
    tokens: str
    processor: bool = False


NATIVE: dict[str, Native] = {
    family.name: family
    for family in (
        Native("llava", "LLaVA-1.5-7B", "llava-hf/llava-1.5-7b-hf", "Llama 2", 7.06, "576", True),
        Native("vipllava", "ViP-LLaVA-7B", "llava-hf/vip-llava-7b-hf", "Llama 2", 7.08, "576", True),
        Native("smolvlm", "SmolVLM-256M", "HuggingFaceTB/SmolVLM-256M-Instruct", "Apache-2.0", 0.256, "64", True),
        Native("idefics2", "Idefics2-8B", "HuggingFaceM4/idefics2-8b", "Apache-2.0", 8.4, "64", True),
        Native("idefics3", "Idefics3-8B", "HuggingFaceM4/Idefics3-8B-Llama3", "Apache-2.0", 8.46, "169", True),
        Native("paligemma", "PaliGemma-3B", "google/paligemma-3b-pt-224", "Gemma terms", 2.92, "256", True),
        Native("gemma3", "Gemma-3-4B", "google/gemma-3-4b-it", "Gemma terms", 4.3, "256", True),
        Native("internvl", "InternVL3-1B", "OpenGVLab/InternVL3-1B-hf", "MIT", 0.94, "256", True),
        Native("qwen2_vl", "Qwen2-VL-2B", "Qwen/Qwen2-VL-2B-Instruct", "Apache-2.0", 2.21, "varies", True),
        Native("qwen2_5_vl", "Qwen2.5-VL-3B", "Qwen/Qwen2.5-VL-3B-Instruct", "Qwen research", 3.75, "varies", True),
        Native("qwen3_vl", "Qwen3-VL-2B", "Qwen/Qwen3-VL-2B-Instruct", "Apache-2.0", 2.13, "varies", True),
        Native(
            "llava_onevision",
            "LLaVA-OneVision-0.5B",
            "llava-hf/llava-onevision-qwen2-0.5b-ov-hf",
            "Apache-2.0",
            0.9,
            "varies",
            True,
        ),
        Native(
            "deepseek_vl",
            "DeepSeek-VL-1.3B",
            "deepseek-community/deepseek-vl-1.3b-chat",
            "DeepSeek terms",
            2.0,
            "576",
            True,
        ),
        Native("blip_2", "BLIP-2-OPT-2.7B", "Salesforce/blip2-opt-2.7b", "MIT", 3.74, "32", True),
    )
}
"""Published sizes and licences are what the pages of these models state; :mod:`mllm.zoo.native_configs` counts them."""
