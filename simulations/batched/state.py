"""The factors of a group of lanes as flat tensors, and the layers that read them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from umbel.adapter import AdapterSpec, LoraPair, TensorSpec, Vector


@dataclass(frozen=True, eq=False)
class LaneSite:
    """One adapted linear layer.

    Attributes:
        path: of the module in the tuned model.
        module: PEFT's layer, whose forward is replaced while lanes run.
        pair: its factors in the spec.
        scaling: of B A.
        dropout: share of the inputs dropped in training.
    """

    path: str
    module: Any
    pair: LoraPair
    scaling: float
    dropout: float


class LaneState:
    """Factors of all lanes: what trains in ``weights`` [lanes, d], what is frozen in ``frozen`` [lanes, rest].

    Tensors keep the spec's order, so a row of ``weights`` is laid out as the sequential trainer lists its parameters.

    Attributes:
        weights, gradients: [lanes, d], one row a lane.
        present: bool [lanes, tensors], whether a tensor of a lane got a gradient in this step. One that got none is
            not touched by the optimizer, as ``grad = None`` in the sequential trainer.

    Args:
        spec: of the adapter.
        trainable: names of the tensors that train.
        starts: [lanes] vectors laid out by ``spec``.
        like: device and dtype of the factors.
    """

    def __init__(self, spec: AdapterSpec, trainable: frozenset[str], starts: Sequence[Vector], like: Tensor) -> None:
        self.spec = spec
        self.names = [t.name for t in spec if t.name in trainable]
        self.index = {name: number for number, name in enumerate(self.names)}
        self.sizes = [spec.by_name[name].size for name in self.names]
        ends = np.cumsum([0, *self.sizes])
        self.offsets = dict(zip(self.names, (int(end) for end in ends[:-1]), strict=True))
        values = torch.from_numpy(np.stack(starts)).to(like.device, like.dtype)
        kept = [t for t in spec if t.name in trainable]
        rest = [t for t in spec if t.name not in trainable]
        self._frozen_offsets = dict(
            zip([t.name for t in rest], np.cumsum([0, *(t.size for t in rest)])[:-1].tolist(), strict=True)
        )
        self.weights = _columns(values, kept)
        self.frozen = _columns(values, rest)
        self.gradients = torch.zeros_like(self.weights)
        self.present: npt.NDArray[np.bool_] = np.zeros((len(starts), len(self.names)), dtype=np.bool_)

    def clear_absent(self, lanes: int) -> None:
        """Zeroes the gradients of tensors that got none in this step, of the first ``lanes`` lanes."""
        present = self.present[:lanes]
        if present.all():
            return
        for number, name in enumerate(self.names):
            absent = np.flatnonzero(~present[:, number])
            if absent.size:
                offset = self.offsets[name]
                self.gradients[:lanes][torch.from_numpy(absent), offset : offset + self.sizes[number]] = 0

    def factor(self, tensor: TensorSpec, lanes: slice) -> Tensor:
        """A view [lanes, *shape] of one tensor's values."""
        return _view(*self._place(tensor), tensor, lanes)

    def gradient(self, tensor: TensorSpec, lanes: slice) -> Tensor | None:
        """A view [lanes, *shape] of one tensor's gradient, or None for a frozen one."""
        offset = self.offsets.get(tensor.name)
        return None if offset is None else _view(self.gradients, offset, tensor, lanes)

    def _place(self, tensor: TensorSpec) -> tuple[Tensor, int]:
        offset = self.offsets.get(tensor.name)
        if offset is not None:
            return self.weights, offset
        return self.frozen, self._frozen_offsets[tensor.name]

    def named(self, flat: Tensor, lane: int, only: npt.NDArray[np.bool_] | None = None) -> dict[str, Any]:
        """Numpy views by name into a row of ``flat`` (on the CPU), laid out as ``weights``.

        Args:
            only: which tensors, [tensors]; all by default.
        """
        row, result = flat[lane].numpy(), {}
        for number, name in enumerate(self.names):
            if only is None or only[number]:
                offset = self.offsets[name]
                shape = self.spec.by_name[name].shape
                result[name] = row[offset : offset + self.sizes[number]].reshape(shape)
        return result

    def vectors(self) -> npt.NDArray[np.float32]:
        """The adapters [lanes, spec.size] in the spec's layout; new memory."""
        out = np.empty((self.weights.shape[0], self.spec.size), dtype=np.float32)
        for tensor in self.spec:
            source, offset = self._place(tensor)
            part = source[:, offset : offset + tensor.size]
            out[:, tensor.offset : tensor.offset + tensor.size] = part.to("cpu", torch.float32).numpy()
        return out


def _columns(values: Tensor, tensors: Sequence[TensorSpec]) -> Tensor:
    pieces = [values[:, t.offset : t.offset + t.size] for t in tensors]
    return torch.cat(pieces, dim=1) if pieces else values.new_zeros(values.shape[0], 0)


def _view(flat: Tensor, offset: int, tensor: TensorSpec, lanes: slice) -> Tensor:
    rows = flat[lanes]
    return rows[:, offset : offset + tensor.size].view(rows.shape[0], *tensor.shape)
