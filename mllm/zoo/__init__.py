"""The zoo: published efficient multimodal systems as presets, and the families that transformers has itself."""

from mllm.zoo.native import NATIVE, Native
from mllm.zoo.system import Size, System
from mllm.zoo.systems import SYSTEMS

__all__ = ["NATIVE", "SYSTEMS", "Native", "Size", "System"]
