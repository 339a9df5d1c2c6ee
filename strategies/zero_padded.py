"""Mixed ranks for linear methods: clients cut the adapter to their rank and send zero-padded differences.

The client computes with the first r_k rows of A and columns of B (B rescaled from alpha/r to alpha/r_k); its upload
is padded to the server's rank and scaled back, so every upload has one length and secure aggregation works. For
methods that freeze a factor (FFA-LoRA, RoLoRA, FedSVD) the change of the product is the exact average of the
clients' changes. Ranks that few clients hold move less: divide by their own weight with
:class:`~strategies.part_weighted.PartWeighted` only if that is not wanted.
"""

from __future__ import annotations

from strategies.base import AdapterStrategy, Arrays, StrategyState
from strategies.client_round import ClientRound
from strategies.ranks import cut, pad, server_spec
from strategies.wrapper import LinearWrapper
from umbel.adapter import AdapterSpec, Vector
from umbel.errors import StrategyError

_ALLOWED = frozenset({"fedit", "ffa-lora", "rolora", "fedsvd", "fedsa-lora"})


class ZeroPadded(LinearWrapper):
    """A linear method over clients of different ranks.

    Args:
        inner: FedIT, FFA-LoRA, RoLoRA, FedSVD or FedSA-LoRA.
        rank: the server's rank, the largest of all.
    """

    def __init__(self, inner: AdapterStrategy, rank: int) -> None:
        if inner.name not in _ALLOWED:
            raise StrategyError(
                f"Strategy {inner.name!r} cannot pad clients of lower rank: use one of {', '.join(sorted(_ALLOWED))}, "
                "or a method with mixed ranks of its own."
            )
        super().__init__(inner, "padded", heterogeneous_ranks=True)
        self.rank = rank

    def _server(self, spec: AdapterSpec) -> AdapterSpec:
        if spec.lora.rank > self.rank:
            raise StrategyError(
                f"A client's LoRA rank {spec.lora.rank} is above the server's {self.rank}: raise lora.rank or lower it."
            )
        return spec if spec.lora.rank == self.rank else spec.with_rank(self.rank)

    def download(self, state: StrategyState, spec: AdapterSpec, round_number: int) -> Vector:
        """The first ranks of the global adapter, rescaled."""
        return cut(server_spec(state.adapter, spec), state.adapter, spec)

    def upload_spec(self, spec: AdapterSpec, round_number: int) -> AdapterSpec:
        """The layout at the server's rank, for every client."""
        return self.inner.upload_spec(self._server(spec), round_number)

    def upload(self, spec: AdapterSpec, local: Vector, received: Vector, round_number: int) -> Vector:
        """The inner upload of the padded adapters."""
        server = self._server(spec)
        if server is spec:
            return self.inner.upload(spec, local, received, round_number)
        return self.inner.upload(server, pad(spec, local, server), pad(spec, received, server), round_number)

    def begin(
        self,
        spec: AdapterSpec,
        received: Vector,
        round_number: int,
        extras: Arrays | None = None,
        kept: Arrays | None = None,
    ) -> ClientRound:
        """A round at the client's own rank; these methods have no hooks."""
        return AdapterStrategy.begin(self, spec, received, round_number, extras, kept)
