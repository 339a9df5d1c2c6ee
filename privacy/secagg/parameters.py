"""SecAggParameters: everything about a round that both sides must agree on, checked when it is made."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import Literal

from privacy.secagg.coordinates import Coordinate
from privacy.secagg.distributed_dp import NoisePlan
from privacy.secagg.encoding import Encoding
from privacy.secagg.shamir import MAX_POINTS
from privacy.secagg.thresholds import SECURITY_BITS, complete_threshold, find_degree, sparse_leak_bits
from umbel.config.secagg import SecAggConfig
from umbel.errors import SecAggError

ALWAYS_COMPLETE = 100
"""Below this the tables of k and t floor to zero adversaries: only the complete graph is offered."""
AUTO_COMPLETE = 200
"""Up to this "auto" prefers the complete graph and its stronger guarantee."""
MAX_COHORT = 10_000


@dataclass(frozen=True)
class SecAggParameters:
    """The agreed numbers of a round.

    Guarantee (given authenticated identities): in mode "complete" no coordinator that colludes with at most
    ``corrupt`` clients learns more than sums over at least ``minimum`` survivors. In mode "sparse" the same
    except with probability 2^-40 over the graph, provided that the coordinator did not choose among graphs.
    Parameters that break this do not construct.

    Attributes:
        n: planned cohort, the most members of the key list.
        minimum: fewest members of the key list and of the survivors, at least 3.
        threshold: t, shares needed to recover a secret; at least 2.
        confirmations: q = floor((n + n_C) / 2) + 1, signatures needed before anybody reveals shares.
        mode: "complete", or "sparse" for the k-regular graph.
        k: neighbours a client (n - 1 when complete).
        corrupt: n_C, clients that may collude with the coordinator; at least 1.
        dropped: clients that may drop out.
        encoding: from floats to integers modulo 2^B.
    """

    n: int
    minimum: int
    threshold: int
    confirmations: int
    mode: Literal["complete", "sparse"]
    k: int
    corrupt: int
    dropped: int
    encoding: Encoding

    def __post_init__(self) -> None:
        if not 3 <= self.minimum <= self.n <= min(MAX_COHORT, MAX_POINTS):
            raise SecAggError(
                f"A cohort of {self.n} with a minimum of {self.minimum} is not possible: have at least 3 and at most "
                f"{MAX_COHORT} clients, and a minimum no larger than the cohort."
            )
        if self.threshold < 2:
            raise SecAggError(f"Threshold {self.threshold} would let one client open another: use at least 2.")
        if not 1 <= self.corrupt < self.n or self.dropped < 0:
            raise SecAggError("At least one client, and not all, must be counted as possibly corrupt.")
        if self.confirmations < complete_threshold(self.n, self.corrupt):
            raise SecAggError(
                f"{self.confirmations} confirmations would allow two views of the survivors: demand at least "
                f"{complete_threshold(self.n, self.corrupt)}."
            )
        if self.encoding.cohort < self.n:
            raise SecAggError("The encoding is made for a smaller cohort and could wrap: fit it to the cohort.")
        if self.encoding.noise is not None and (
            self.encoding.noise.minimum > self.minimum or self.encoding.noise.corrupt < self.corrupt
        ):
            raise SecAggError(
                "The noise counts on more honest survivors than the protocol enforces: lower its minimum."
            )
        if self.mode == "complete":
            if self.k != self.n - 1 or not complete_threshold(self.n, self.corrupt) <= self.threshold <= self.n:
                raise SecAggError(
                    f"Threshold {self.threshold} is not safe for {self.n} clients of which {self.corrupt} may be "
                    f"corrupt: use at least {complete_threshold(self.n, self.corrupt)} and at most {self.n}."
                )
        elif (
            self.n < ALWAYS_COMPLETE
            or self.k % 2
            or not 2 <= self.threshold <= self.k < self.minimum - 1
            or 2 * self.threshold <= self.k
            or sparse_leak_bits(self.minimum, self.k, self.threshold, self.corrupt, self.dropped) > -SECURITY_BITS
        ):
            raise SecAggError(
                f"A sparse graph of {self.n} clients with k={self.k} and t={self.threshold} does not hide its clients "
                'with 40 bits: let SecAggParameters.choose find k and t, or set secagg.graph to "complete".'
            )

    @classmethod
    def choose(
        cls,
        config: SecAggConfig,
        cohort: int,
        length: int,
        *,
        max_weight: int = 0,
        coordinates: tuple[Coordinate, ...] = (),
        noise_multiplier: float | None = None,
        mechanism: Literal["skellam", "discrete-gaussian"] = "skellam",
        rotate: bool = False,
    ) -> SecAggParameters:
        """Parameters for a cohort of ``cohort`` clients and vectors of ``length`` values.

        Args:
            config: the run's section.
            cohort: clients invited.
            length: values of the upload.
            max_weight: see :class:`Encoding`.
            coordinates: see :class:`Encoding`.
            noise_multiplier: z of distributed differential privacy, or None for no noise.
            mechanism: of that noise.
            rotate: rotate even without noise (always with it).

        Raises:
            SecAggError: the cohort is below the minimum, no threshold is possible or the bits do not suffice; the
                message names the option to change.
        """
        if cohort < config.minimum:
            raise SecAggError(
                f"A cohort of {cohort} is below secagg.minimum={config.minimum}: invite more clients, lower the "
                "minimum (not below 3) or switch secure aggregation off."
            )
        if cohort > MAX_COHORT:
            raise SecAggError(f"A cohort of {cohort} is above the {MAX_COHORT} that one round can hold: sample fewer.")
        corrupt, dropped = max(1, math.ceil(config.corrupt * cohort - 1e-9)), int(config.dropout * cohort + 1e-9)
        if config.graph == "sparse" and cohort < ALWAYS_COMPLETE:
            raise SecAggError(
                f'A sparse graph of {cohort} clients protects nobody: set secagg.graph to "auto" or invite at least '
                f"{ALWAYS_COMPLETE} clients."
            )
        confirmations = complete_threshold(cohort, corrupt)
        if confirmations > cohort - dropped:
            raise SecAggError(
                f"With {cohort} clients, {corrupt} of them corrupt and {dropped} dropped, the threshold of "
                f"{confirmations} cannot be reached: invite more clients or lower secagg.corrupt or secagg.dropout."
            )
        complete = config.graph == "complete" or (config.graph == "auto" and cohort <= AUTO_COMPLETE)
        if complete:
            k, threshold, minimum = cohort - 1, confirmations, max(config.minimum, confirmations)
        else:
            minimum = max(config.minimum, cohort - dropped)
            k, threshold = find_degree(minimum, corrupt, dropped)
        noise = None
        if noise_multiplier is not None:
            noise = NoisePlan(noise_multiplier, minimum, corrupt, mechanism)
        encoding = Encoding.fit(
            config.bits,
            length,
            cohort,
            config.clip,
            max_weight=max_weight,
            coordinates=coordinates,
            rotate=rotate or noise is not None,
            noise=noise,
        )
        mode: Literal["complete", "sparse"] = "complete" if complete else "sparse"
        return cls(cohort, minimum, threshold, confirmations, mode, k, corrupt, dropped, encoding)

    @property
    def bits(self) -> int:
        """B."""
        return self.encoding.bits

    @property
    def length(self) -> int:
        """d, values of the model vector."""
        return self.encoding.length

    @property
    def clip(self) -> float:
        """c, the largest L2 norm."""
        return self.encoding.clip

    @property
    def scale(self) -> float:
        """s, quantization steps a unit."""
        return self.encoding.scale

    @property
    def threat_model(self) -> str:
        """One sentence for the report."""
        who = f"a coordinator that colludes with up to {self.corrupt} of {self.n} clients"
        if self.mode == "complete":
            return f"No update is visible to {who}, even if it is malicious."
        return (
            f"No update is visible to {who}, except with probability 2^-40, as long as it does not choose among "
            "communication graphs."
        )

    def canonical(self) -> bytes:
        """The same parameters give the same bytes; what the round's context hashes."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":")).encode()
