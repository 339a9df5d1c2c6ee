"""The book-keeping engine: one forward and one backward pass, exact per-example clipping.

Each trainable layer keeps a :class:`Book` in which rows are summed to their example before any norm is taken. No second
pass is made, and no batch gradient that would be thrown away.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from privacy.clipping.book import Book
from privacy.clipping.claims import claim
from privacy.clipping.engine import Forward, GradientEngine, Split, clip_factors, full_precision, losses_of
from privacy.clipping.layers import booked_forward
from umbel.errors import PrivacyError, UnclaimedParameter
from umbel.rows import RowMap


class BookkeepingEngine(GradientEngine):
    """Exact clipping in one pass, for LoRA factors, linear layers and norms; needs a row map."""

    def __init__(self, model: nn.Module, trainable: Mapping[str, nn.Parameter], clipping_norm: float) -> None:
        super().__init__(model, trainable, clipping_norm)
        self._claims = claim(model, self.trainable)

    def _accumulate(
        self, forward: Forward, batch: Any, rows: RowMap | None, size: int, split: Split | None
    ) -> tuple[Tensor, Tensor]:
        if rows is None:
            raise PrivacyError("The book-keeping engine got no row map: make one for the batch or use the loop engine.")
        books = [Book(one, rows) for one in self._claims]
        self._clear()
        with self._booked(books):
            losses = losses_of(forward, batch, size)
            if losses.requires_grad:
                with full_precision():
                    losses.sum().backward()  # type: ignore[no-untyped-call]
        self._check_unseen()
        with full_precision():
            norms = self._finish(books, size)
        return norms, losses.detach().float()

    def _finish(self, books: list[Book], size: int) -> Tensor:
        """Adds the clipped sums of all layers; returns the norms, float64 [n]."""
        squares = [square for square in (book.squared_norms() for book in books) if square is not None]
        # Layers may lie on several devices.
        norms = (
            torch.stack([s.to(squares[0].device) for s in squares]).sum(dim=0).sqrt()
            if squares
            else torch.zeros(size, dtype=torch.float64)
        )
        factors = clip_factors(norms, self.clipping_norm)
        for book in books:
            for name, value in book.clipped_sum(factors):
                self._add(name, value)
        return norms

    @contextmanager
    def _booked(self, books: list[Book]) -> Iterator[None]:
        """Puts the booked forwards on the layers, and takes them off whatever happens."""
        taken: list[nn.Module] = []
        try:
            for one, book in zip(self._claims, books, strict=True):
                if "forward" in vars(one.module):
                    raise PrivacyError(
                        f"Layer {one.path!r} already has a forward of its own: remove the other tool that wraps it."
                    )
                one.module.forward = booked_forward(one, book.record)
                taken.append(one.module)
            yield
        finally:
            for module in taken:
                del module.forward

    def _check_unseen(self) -> None:
        stray = next((name for name, p in self.trainable.items() if p.grad is not None), None)
        self._clear()
        if stray is not None:
            raise UnclaimedParameter(
                f"Parameter {stray!r} also acts outside the layer that holds it (tied or used directly), so its "
                "per-example gradient is not known: untie it or freeze it."
            )
