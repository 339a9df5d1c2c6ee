"""Adapters of one rank seen at another: cutting, zero-padding, and the scale that both must respect.

The adapted weight is s B A with s = alpha/r (or alpha/sqrt(r)): the same factors at another rank mean another
weight. Every function here keeps s B A, by scaling B; A is never scaled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from strategies.base import AdapterStrategy, StrategyState, Upload
from umbel.adapter import AdapterSpec, LoraPair, Vector
from umbel.errors import StrategyError


def server_spec(adapter: Vector, spec: AdapterSpec) -> AdapterSpec:
    """The spec of the global adapter, found from its length: ``spec``'s modules at the server's rank.

    Raises:
        StrategyError: no rank gives that length, or the client's rank is larger than the server's.
    """
    if adapter.size == spec.size:
        return spec
    per_rank = sum((pair.a.size + pair.b.size) // pair.rank for pair in spec.pairs)
    rest = adapter.size - sum(t.size for t in spec.others)
    rank = rest // per_rank if per_rank else 0
    if rank < 1 or rank * per_rank != rest:
        raise StrategyError("A client's adapter has other modules than the server's: both must use the same targets.")
    if rank < spec.lora.rank:
        raise StrategyError(
            f"A client asks for LoRA rank {spec.lora.rank}, above the server's {rank}: raise lora.rank or lower "
            "the client's rank."
        )
    return spec.with_rank(rank)


def cut(server: AdapterSpec, adapter: Vector, client: AdapterSpec) -> Vector:
    """The first ``client.lora.rank`` rows of each A and columns of each B, B rescaled to the client's scale."""
    source, result = server.views(adapter), client.zeros()
    views, scale = client.views(result), np.float32(server.lora.scaling / client.lora.scaling)
    for pair in client.pairs:
        views[pair.a.name][...] = source[pair.a.name][: pair.rank]
        views[pair.b.name][...] = source[pair.b.name][:, : pair.rank] * scale
    for tensor in client.others:
        views[tensor.name][...] = source[tensor.name]
    return result


def pad(client: AdapterSpec, adapter: Vector, server: AdapterSpec) -> Vector:
    """The client's factors with zero rows and columns up to the server's rank; s B A is unchanged."""
    source, result = client.views(adapter), server.zeros()
    views, scale = server.views(result), np.float32(client.lora.scaling / server.lora.scaling)
    for pair in client.pairs:
        views[pair.a.name][: pair.rank] = source[pair.a.name]
        views[pair.b.name][:, : pair.rank] = source[pair.b.name] * scale
    for tensor in client.others:
        views[tensor.name][...] = source[tensor.name]
    return result


@dataclass(frozen=True)
class Local:
    """One client's trained adapter, rebuilt at the server from its visible upload."""

    spec: AdapterSpec
    vector: Vector
    received: Vector
    share: float
    """Its weight over the sum of weights."""

    def factors(self, pair: LoraPair) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """(share * s * B [out, r_k], A [r_k, in]) of one module, float64."""
        views = self.spec.views(self.vector)
        b = views[pair.b.name].astype(np.float64) * (self.share * self.spec.lora.scaling)
        return b, views[pair.a.name].astype(np.float64)

    def padded(self, server: AdapterSpec) -> dict[str, npt.NDArray[np.float32]]:
        """Views by name of the adapter at the server's rank (:func:`pad`)."""
        same = self.spec.lora.rank == server.lora.rank
        return server.views(self.vector if same else pad(self.spec, self.vector, server))


def rebuild(
    strategy: AdapterStrategy, spec: AdapterSpec, uploads: Sequence[Upload], state: StrategyState, round_number: int
) -> list[Local]:
    """Every client's adapter after training: what it received plus the difference that it sent.

    Raises:
        StrategyError: no uploads, bad weights, or an upload that does not fit its rank.
    """
    if not uploads:
        raise StrategyError("There are no uploads to aggregate: at least one client must answer.")
    total = float(sum(u.weight for u in uploads))
    if not (np.isfinite(total) and total > 0 and all(u.weight >= 0 for u in uploads)):
        raise StrategyError("The clients' weights do not sum to a positive number: every client needs an example.")
    found, started = [], {}
    for upload in uploads:
        if upload.rank not in started:
            client = spec if upload.rank == spec.lora.rank else spec.with_rank(upload.rank)
            started[upload.rank] = client, strategy.download(state, client, round_number)
        client, received = started[upload.rank]
        if upload.vector.shape != (client.size,):
            raise StrategyError(
                f"An upload of rank {upload.rank} has {upload.vector.size} values, expected {client.size}: "
                "client and server must use the same strategy."
            )
        found.append(Local(client, received + upload.vector, received, upload.weight / total))
    return found


def mean_of_others(spec: AdapterSpec, locals_: Sequence[Local], adapter: Vector) -> Vector:
    """A copy of ``adapter`` in which the tensors that are no LoRA factor hold the clients' weighted mean."""
    result = adapter.copy()
    views = spec.views(result)
    for tensor in spec.others:
        total = np.zeros(tensor.shape, dtype=np.float64)
        for local in locals_:
            total += local.share * local.spec.views(local.vector)[tensor.name]
        views[tensor.name][...] = total
    return result
