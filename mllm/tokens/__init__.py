"""Fewer image tokens: before the language model (pool, ToMe, PruMerge) or inside it (FastV, withdrawal).

Each method looks at one image, or at one example, alone: no row of a batch depends on another, so per-example
clipping stays exact. ``attach_tokens`` puts a method on a loaded base.
"""

from mllm.tokens.attach import METHODS, TokenPlan, attach_tokens

__all__ = ["METHODS", "TokenPlan", "attach_tokens"]
