"""Base models that umbel can build itself, offline."""

from mllm.bases.store import build, locate

__all__ = ["build", "locate"]
