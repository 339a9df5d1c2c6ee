"""FedDPA-style global and personal adapters (Long et al. 2024, arXiv 2403.19211).

    delta W_k = s (B_g A_g + B_k A_k):  B_g A_g is averaged as in FedIT, B_k A_k never leaves client k

Both adapters live in one LoRA of rank r = r_g + r_p, the global one in the first r_g rows of A and columns of B: the
sum above is then just s B A, and the model needs no second slot. The paper weighs the two at inference by the
similarity of an input to the client's data; here they count fully, and cutting B to its first columns gives the
global model.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from strategies.base import AdapterStrategy, Arrays, StrategyFacts, StrategyState
from umbel.adapter import AdapterSpec, LoraPair, TensorSpec, Vector
from umbel.errors import StrategyError


class FedDPA(AdapterStrategy):
    """A shared adapter for everybody plus a personal one for each client, trained together.

    The server's adapter keeps a zero B in the personal part, so evaluating it measures the global adapter alone.
    Up and down: the first r - ``personal_rank`` ranks of both factors.

    Args:
        personal_rank: r_p; 0 gives half of the rank, rounded down. Must leave at least one global rank.
    """

    name = "feddpa"
    facts = StrategyFacts(
        paper="Long et al. 2024, arXiv 2403.19211",
        linear=True,
        exact=False,
        private=False,
        heterogeneous_ranks=False,
        note="A global adapter plus a personal one at each client.",
        personal=True,
        up="global rows of A, columns of B",
        down="global rows of A, columns of B",
    )

    def __init__(self, personal_rank: int = 0) -> None:
        self.personal_rank = personal_rank

    def shared_rank(self, spec: AdapterSpec) -> int:
        """r_g. Raises StrategyError when no rank would be left for either adapter."""
        personal = self.personal_rank or spec.lora.rank // 2
        if not 1 <= personal < spec.lora.rank:
            raise StrategyError(
                f"FedDPA cannot split LoRA rank {spec.lora.rank} into a global and a personal part of {personal}: "
                "use a lora.rank of at least 2 and a smaller personal rank."
            )
        return spec.lora.rank - personal

    def initial(self, spec: AdapterSpec, adapter: Vector) -> StrategyState:
        """The given adapter with a zero personal B."""
        state = super().initial(spec, adapter)
        views, shared = spec.views(state.adapter), self.shared_rank(spec)
        for pair in spec.pairs:
            views[pair.b.name][:, shared:] = 0
        return state

    def upload_spec(self, spec: AdapterSpec, round_number: int) -> AdapterSpec:
        """The global rows and columns, and the other tensors."""
        return spec.with_rank(self.shared_rank(spec))

    def upload(self, spec: AdapterSpec, local: Vector, received: Vector, round_number: int) -> Vector:
        """The difference of the global part."""
        difference, up = spec.views(local - received), self.upload_spec(spec, round_number)
        return up.flatten({t.name: _leading(difference[t.name], t) for t in up})

    def step(self, spec: AdapterSpec, mean: Vector, state: StrategyState, round_number: int) -> StrategyState:
        """Adds the mean difference to the global part."""
        adapter, up = state.adapter.copy(), self.upload_spec(spec, round_number)
        views, moved = spec.views(adapter), up.views(mean)
        for tensor in up:
            _leading(views[tensor.name], tensor)[...] += moved[tensor.name]
        return StrategyState({**state.arrays, "adapter": adapter})

    def personal(self, spec: AdapterSpec, round_number: int) -> frozenset[str]:
        """Both factors of every layer, in part."""
        return frozenset(t.name for pair in spec.pairs for t in (pair.a, pair.b))

    def keep(self, spec: AdapterSpec, local: Vector, round_number: int) -> dict[str, npt.NDArray[np.float32]]:
        """The personal rows of each A and columns of each B, under the tensors' names."""
        views, shared = spec.views(local), self.shared_rank(spec)
        return {t.name: part.copy() for pair in spec.pairs for t, part in _own(views, pair, shared)}

    def restore(self, spec: AdapterSpec, received: Vector, kept: Arrays, round_number: int) -> Vector:
        """The received global part with the kept personal one."""
        start, shared = received.copy(), self.shared_rank(spec)
        views = spec.views(start)
        for pair in spec.pairs:
            for tensor, part in _own(views, pair, shared):
                if tensor.name in kept and kept[tensor.name].shape == part.shape:
                    part[...] = kept[tensor.name]
        return start


def _own(views: Arrays, pair: LoraPair, shared: int) -> list[tuple[TensorSpec, npt.NDArray[np.float32]]]:
    """Views of the personal rows of A and columns of B."""
    return [(pair.a, views[pair.a.name][shared:]), (pair.b, views[pair.b.name][:, shared:])]


def _leading(array: npt.NDArray[np.float32], like: TensorSpec) -> npt.NDArray[np.float32]:
    """The view of ``array``'s leading block that has the shape of ``like``."""
    return array[tuple(slice(0, n) for n in like.shape)]
