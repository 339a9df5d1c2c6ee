"""Opacus's per-example gradients as an engine: the hooks, or ghost clipping.

Opacus takes the first dimension of every layer for the example. That is right for LoRA in the language model and
wrong, without a sign, for images, tiles and patches; so the first batch is always checked against the loop, every
batch's row map must say that row i belongs to example i, and without a row map every batch is checked. Ghost clipping
books a parameter once a backward pass: gradient checkpointing and shared layers fail the check or raise.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from opacus.grad_sample.grad_sample_module import GradSampleHooks
from opacus.grad_sample.grad_sample_module_fast_gradient_clipping import GradSampleHooksFastGradientClipping
from torch import Tensor, nn

from privacy.clipping.check import require_agreement
from privacy.clipping.claims import claim
from privacy.clipping.engine import Forward, GradientEngine, Split, clip_factors, full_precision, losses_of
from privacy.clipping.loop import LoopEngine
from umbel.errors import PrivacyError
from umbel.rows import RowMap

Mode = Literal["hooks", "ghost"]


class OpacusEngine(GradientEngine):
    """Clipping by Opacus, refused unless it equals the loop on the first batch.

    Prefer the book-keeping engine, which needs no check. A later batch with other numbers of images an example cannot
    slip through: its row map or its leading dimension is refused.
    """

    def __init__(
        self,
        model: nn.Module,
        trainable: Mapping[str, nn.Parameter],
        clipping_norm: float,
        mode: Mode = "hooks",
        *,
        checked: bool = False,
    ) -> None:
        super().__init__(model, trainable, clipping_norm)
        self.mode: Mode = mode
        self._claims = claim(model, self.trainable)
        self._oracle = LoopEngine(model, trainable, clipping_norm)
        self._checked = checked

    def _accumulate(
        self, forward: Forward, batch: Any, rows: RowMap | None, size: int, split: Split | None
    ) -> tuple[Tensor, Tensor]:
        if not all(one.module.training for one in self._claims):
            raise PrivacyError("Opacus books nothing in eval mode: call train() on the model first.")
        self._check_map(rows, size)
        if not self._checked:
            if split is None:
                raise PrivacyError("Opacus cannot be checked against the loop: pass a split that gives one example.")
            twin = type(self)(self.model, self.trainable, self.clipping_norm, self.mode, checked=True)
            require_agreement(twin, self._oracle, forward, batch, rows, size, split, f"opacus {self.mode}")
            self._checked = rows is not None
        self._clear()
        return self._ghost(forward, batch, size) if self.mode == "ghost" else self._hooks(forward, batch, size)

    def _hooks(self, forward: Forward, batch: Any, size: int) -> tuple[Tensor, Tensor]:
        hooks = GradSampleHooks(self.model, loss_reduction="sum", strict=False)
        try:
            losses = losses_of(forward, batch, size)
            with full_precision():
                if losses.requires_grad:
                    losses.sum().backward()  # type: ignore[no-untyped-call]
                norms = self._sum_samples(size)
        finally:
            self._tear_down(hooks)
        return norms, losses.detach().float()

    def _sum_samples(self, size: int) -> Tensor:
        samples = {name: s for name, p in self.trainable.items() if (s := getattr(p, "grad_sample", None)) is not None}
        self._check_rows({name: s.shape[0] for name, s in samples.items()}, size)
        norms = _norms([s.flatten(1).norm(dim=1) for s in samples.values()], size)
        factors = clip_factors(norms, self.clipping_norm)
        for name, s in samples.items():
            if not bool((factors > 0).all()):
                s[factors == 0] = 0
            self._add(name, (factors @ s.flatten(1).float()).view(s.shape[1:]))
        return norms

    def _ghost(self, forward: Forward, batch: Any, size: int) -> tuple[Tensor, Tensor]:
        hooks = GradSampleHooksFastGradientClipping(
            self.model, loss_reduction="sum", strict=False, max_grad_norm=self.clipping_norm
        )
        try:
            losses = losses_of(forward, batch, size)
            with full_precision():
                norms = self._two_passes(hooks, losses, size) if losses.requires_grad else torch.zeros(size)
        finally:
            self._tear_down(hooks)
        return norms, losses.detach().float()

    def _two_passes(self, hooks: GradSampleHooks, losses: Tensor, size: int) -> Tensor:
        losses.sum().backward(retain_graph=True)  # type: ignore[no-untyped-call]
        samples = {name: s for name, p in self.trainable.items() if (s := getattr(p, "_norm_sample", None)) is not None}
        self._check_rows({name: s.shape[0] for name, s in samples.items()}, size)
        norms = _norms(list(samples.values()), size)
        hooks.disable_hooks()
        self._clear()
        factors = clip_factors(norms, self.clipping_norm)
        if bool((factors == 0).any()):
            raise PrivacyError(
                "A gradient is not finite and ghost clipping cannot leave its example out: use another engine."
            )
        (losses * factors.to(losses.dtype)).sum().backward()  # type: ignore[no-untyped-call]
        for name, p in self.trainable.items():
            if p.grad is not None:
                self._add(name, p.grad.float())
        return norms

    def _check_map(self, rows: RowMap | None, size: int) -> None:
        """Refuses a batch in which row i of a trained layer is not example i."""
        for one in self._claims if rows is not None else ():
            assert rows is not None
            rule = next((rule for rule in rows.rules if rule.fits(one.path)), None)
            layout = None if rule is None else rule.find(size)
            empty = rule is not None and all(len(known) == 0 for known in rule.layouts)
            if not empty and (layout is None or layout.owners.tolist() != list(range(size))):
                raise PrivacyError(
                    f"Opacus would clip the rows of {one.path!r} instead of examples, of which a row is not one there: "
                    "use the book-keeping or loop engine."
                )

    def _check_rows(self, leading: Mapping[str, int], size: int) -> None:
        wrong = next((name for name, rows in leading.items() if rows != size), None)
        if wrong is not None:
            raise PrivacyError(
                f"Opacus sees {leading[wrong]} rows at {wrong!r} for {size} examples and would clip rows instead of "
                "examples: use the book-keeping or loop engine."
            )

    def _tear_down(self, hooks: GradSampleHooks) -> None:
        hooks.remove_hooks()
        for module in self.model.modules():
            for left in ("activations", "max_batch_len"):
                if left in vars(module):
                    delattr(module, left)
        for p in self.trainable.values():
            for left in ("grad_sample", "_norm_sample", "_current_grad_sample", "_forward_counter"):
                if hasattr(p, left):
                    delattr(p, left)
        self._clear()


def _norms(parts: list[Tensor], size: int) -> Tensor:
    if not parts:
        return torch.zeros(size)
    return torch.stack([part.detach().double().reshape(size) for part in parts]).square().sum(dim=0).sqrt()
