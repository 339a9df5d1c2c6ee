"""Per-example gradient clipping: two exact engines, Opacus behind a check, one interface."""

from privacy.clipping.engine import Clipped, Forward, GradientEngine, Split, clip_factors
from privacy.clipping.make import KINDS, make_engine

__all__ = ["KINDS", "Clipped", "Forward", "GradientEngine", "Split", "clip_factors", "make_engine"]
