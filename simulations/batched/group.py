"""One group of lanes, trained together from the first step to the last."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from client.losses import example_losses
from mllm.rows import row_map
from privacy.clipping.claims import check_batch_norm, claim
from privacy.clipping.engine import full_precision
from simulations.batched.books import clipped_sums
from simulations.batched.chunk import Chunk
from simulations.batched.collation import KeptCollator
from simulations.batched.features import kept_features
from simulations.batched.lane import Lane
from simulations.batched.linear import Slot, laned
from simulations.batched.optimizer import clip_lanes_, lane_optimizer
from simulations.batched.owners import LaneRows, UnmappedRows
from simulations.batched.state import LaneSite, LaneState
from umbel.config import TrainConfig
from umbel.errors import ModelError, UmbelError

if TYPE_CHECKING:
    from mllm.lora import TunedModel
    from mllm.tasks.collate import Batch, Collator
    from mllm.tasks.example import Example

_BOOKED = 1 << 27
"""Most float32 values of per-example gradients that one pass holds (512 MB)."""


class LaneGroup:
    """Lanes that train the same tensors, all private with one clipping norm or none of them.

    Args:
        tuned: the warm model, in any mode.
        collator: of the model.
        config: of the training.
        lanes: sorted by :func:`~simulations.batched.lane.order_lanes`: those with most steps first.
        sites: the adapted layers.
        rows: most examples in one forward pass; a single lane's microbatch may exceed it.
    """

    def __init__(
        self,
        tuned: TunedModel,
        collator: Collator | KeptCollator,
        config: TrainConfig,
        lanes: Sequence[Lane],
        sites: Sequence[LaneSite],
        rows: int,
    ) -> None:
        self._tuned = tuned
        self._collator = collator
        self._config = config
        self._lanes = lanes
        self._sites = sites
        self._rows = rows
        client = lanes[0].job.client
        private = lanes[0].job.private
        self._clipping_norm = None if private is None else private.clipping_norm
        first = next(iter(tuned.parameters.values()))
        self.state = LaneState(client.spec, client.trainable, [lane.job.client.start for lane in lanes], first.detach())
        if private is not None:
            self._rows = min(rows, max(1, _BOOKED // max(self.state.weights.shape[1], 1)))
        self._optimizer = lane_optimizer(self.state.weights, self.state.sizes, config)
        self._slot = Slot()
        self.batched_seconds = 0.0

    def run(self) -> None:
        """Trains all lanes; afterwards ``state`` holds their factors and each lane its sums or its error.

        Raises:
            UnmappedRows: rows of the model cannot be matched to lanes; nothing has left any lane.
            UnclaimedParameter, PrivacyError: private training, and a parameter or layer that cannot be clipped.
        """
        with self._session():
            if self._clipping_norm is not None:
                self._probe()
            drawn = False
            try:
                for step in range(max(lane.steps for lane in self._lanes)):
                    drawn = True
                    self._step(step)
            except UnmappedRows as error:
                error.late = drawn
                raise

    def _step(self, step: int) -> None:
        active = [lane for lane in self._lanes if lane.steps > step]
        n = len(active)
        gradients, present = self.state.gradients[:n], self.state.present[:n]
        present[:] = False  # and what is there is overwritten by the first gradient of a tensor
        if self._clipping_norm is not None:
            gradients.zero_()
        for lane in active:
            lane.draw()
        losses = torch.zeros(n, dtype=torch.float64)
        for number in range(max((lane.microbatches() for lane in active), default=0)):
            for start, stop, examples in self._cut(active, number):
                self._pass(slice(start, stop), examples, losses)
        for lane, total in zip(active, losses.tolist(), strict=True):
            lane.note(total)
        if self._clipping_norm is not None:
            self._release(active)
            present[:] = True
        else:
            self.state.clear_absent(n)
            if self._config.max_grad_norm > 0:
                clip_lanes_(gradients, self._config.max_grad_norm)
        self._hooks(active, step, before=True)
        self._optimizer.step(gradients, [lane.rate(step) for lane in active], present)
        self._hooks(active, step, before=False)

    def _cut(self, active: Sequence[Lane], number: int) -> Iterator[tuple[int, int, list[list[Example]]]]:
        """Runs of lanes whose microbatches of this number fit one forward pass together."""
        start, size = 0, 0
        held: list[list[Example]] = []
        for position, lane in enumerate(active):
            try:
                mine = lane.chunk(number)
            except UmbelError as error:
                lane.error, mine = error, []
            if held and size and size + len(mine) > self._rows:
                yield start, position, held
                start, held, size = position, [], 0
            held.append(mine)
            size += len(mine)
        if size:
            yield start, len(active), held

    def _pass(self, where: slice, examples: list[list[Example]], losses: Tensor) -> None:
        """One joint forward and backward pass: gradients of these lanes grow, and ``losses`` [lanes]."""
        lanes = self._lanes[where]
        batch = self._collate(lanes, examples)
        if batch is None:
            return
        sizes = [len(mine) for mine in examples]
        started = time.perf_counter()
        owner = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
        books = None
        if self._clipping_norm is not None:
            books = self.state.weights.new_zeros(batch.size, self.state.weights.shape[1])
        self._slot.chunk = self._chunk(where, batch, sizes, [lane.generator for lane in lanes], books)
        found = example_losses(self._tuned.model, batch, self._config.balance)
        if books is None:
            share = torch.tensor([1 / max(len(lane.batch), 1) for lane in lanes], dtype=found.dtype)
            (found * share[owner].to(found.device)).sum().backward()  # type: ignore[no-untyped-call]
        elif found.requires_grad:
            with full_precision():
                found.sum().backward()  # type: ignore[no-untyped-call]
                clipped_sums(books, sizes, self._clipping_norm or 0.0, self.state.gradients[where])
        self._check_stray()
        losses[where].index_add_(0, owner, found.detach().to("cpu", torch.float64))
        self.batched_seconds += time.perf_counter() - started

    def _chunk(
        self,
        where: slice,
        batch: Batch,
        sizes: Sequence[int],
        generators: Sequence[torch.Generator] | None,
        books: Tensor | None,
    ) -> Chunk:
        try:
            rows = row_map(self._tuned.model, batch.inputs, batch.images_per_example)
        except ModelError as error:
            raise UnmappedRows(str(error)) from None
        widths, lengths, start = batch.inputs["attention_mask"].sum(dim=1).tolist(), [], 0
        for size in sizes:
            lengths.append(int(max(widths[start : start + size], default=0)))
            start += size
        return Chunk(self.state, where, LaneRows(rows, sizes), batch.size, lengths, generators, books)

    def _collate(self, lanes: Sequence[Lane], examples: list[list[Example]]) -> Batch | None:
        """The joint batch; a lane whose examples cannot be encoded fails and is emptied in ``examples``."""
        try:
            return self._collator([one for mine in examples for one in mine])
        except UmbelError:
            for position, lane in enumerate(lanes):
                try:
                    if examples[position]:
                        self._collator(examples[position])
                except UmbelError as error:
                    lane.error, examples[position] = error, []
        left = [one for mine in examples for one in mine]
        return self._collator(left) if left else None

    def _release(self, active: Sequence[Lane]) -> None:
        """Each lane's clipped sum becomes its noised mean; the sum is always one vector in the spec's order."""
        for position, lane in enumerate(active):
            if lane.job.private is not None and lane.error is None:
                row = self.state.gradients[position]
                row.copy_(torch.from_numpy(lane.job.private.noised_mean(row.cpu().numpy().copy())))

    def _hooks(self, active: Sequence[Lane], step: int, *, before: bool) -> None:
        """The strategy's hooks of each lane, on views of its own row."""
        hooked = [i for i, lane in enumerate(active) if lane.error is None and lane.job.client.hooked]
        if not hooked:
            return
        weights, gradients = self.state.weights.cpu(), self.state.gradients.cpu()
        for i in hooked:
            values = self.state.named(weights, i)
            if before:
                active[i].job.client.gradient(self.state.named(gradients, i, self.state.present[i]), values)
            else:
                active[i].job.client.after_step(values)
        if weights.device != self.state.weights.device:
            (self.state.gradients if before else self.state.weights).copy_(gradients if before else weights)

    def _probe(self) -> None:
        """Runs one example of up to two lanes without training, so that a surprise comes before any noise is drawn."""
        lanes = [lane for lane in self._lanes[:2] if len(lane.job.examples)]
        try:
            batch = self._collator([lane.job.examples[0] for lane in lanes])
        except UmbelError:
            return  # an example that cannot be encoded fails its lane when, and if, it is drawn
        self._slot.chunk = self._chunk(slice(0, len(lanes)), batch, [1] * len(lanes), None, None)
        with torch.no_grad():
            example_losses(self._tuned.model, batch, self._config.balance)

    def _check_stray(self) -> None:
        stray = next((name for name, p in self._tuned.parameters.items() if p.grad is not None), None)
        if stray is not None:
            raise UnmappedRows(f"parameter {stray!r} also acts outside the layer that holds it")

    @contextmanager
    def _session(self) -> Iterator[None]:
        """Training mode and laned layers; all is put back at the end."""
        model: Any = self._tuned.model
        every = self._tuned.parameters
        threads = torch.get_num_threads()
        torch.set_num_threads(self._config.threads)
        model.train()
        for name, parameter in every.items():
            parameter.requires_grad_(name in self.state.index)
        leaf = self.state.weights.new_zeros(0).requires_grad_()
        try:
            if self._clipping_norm is not None:
                claim(model, {name: p for name, p in every.items() if name in self.state.index})
                check_batch_norm(model)
            with laned(self._sites, leaf) as self._slot, kept_features(self._tuned.base.model, self._sites):
                yield
        finally:
            for parameter in every.values():
                parameter.requires_grad_(True)
                parameter.grad = None
            model.eval()
            torch.set_num_threads(threads)


def local_vectors(group: LaneGroup) -> list[np.ndarray[Any, np.dtype[np.float32]]]:
    """The adapters of a group's lanes, each memory of its own."""
    return [row.copy() for row in group.state.vectors()]
