"""Choosing an engine by its name in the configuration."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from privacy.clipping.auto import AutoEngine
from privacy.clipping.bookkeeping import BookkeepingEngine
from privacy.clipping.engine import GradientEngine
from privacy.clipping.loop import LoopEngine
from umbel.errors import PrivacyError

KINDS = ("auto", "bookkeeping", "loop", "opacus", "opacus-ghost")


def make_engine(
    kind: str, model: nn.Module, trainable: Mapping[str, nn.Parameter], clipping_norm: float
) -> GradientEngine:
    """The engine of this kind.

    Args:
        kind: one of :data:`KINDS`; "auto" books where a row map is given and loops where none is; "loop-any" also
            clips parameters that no layer holds (:class:`LoopEngine`), and is chosen by what is trained, not by a user.
        model: the model whose parameters are trained, in the mode (train or eval) it is trained in.
        trainable: name to parameter, float32; exactly those of the model that require gradients.
        clipping_norm: C, positive and finite.

    Raises:
        PrivacyError: unknown kind, impossible clipping norm, a frozen or low-precision parameter.
        UnclaimedParameter: a trainable parameter whose per-example gradient is not known; its name is in the message.
    """
    if kind == "auto":
        return AutoEngine(model, trainable, clipping_norm)
    if kind == "bookkeeping":
        return BookkeepingEngine(model, trainable, clipping_norm)
    if kind in ("loop", "loop-any"):
        return LoopEngine(model, trainable, clipping_norm, any_parameter=kind == "loop-any")
    if kind in ("opacus", "opacus-ghost"):
        from privacy.clipping.opacus import OpacusEngine  # imports slowly, and most runs do without

        return OpacusEngine(model, trainable, clipping_norm, "hooks" if kind == "opacus" else "ghost")
    raise PrivacyError(f"Engine {kind!r} is unknown: choose one of {', '.join(KINDS)}.")
