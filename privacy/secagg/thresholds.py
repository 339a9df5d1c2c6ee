"""How many neighbours and which threshold: the failure probabilities of the sparse graph, and their inverse.

Bell et al. 2020 (SecAgg+), section 3 and appendix: neighbourhoods are uniform samples without
replacement, so the corrupt and the surviving neighbours of a client are hypergeometric; union bounds over
the n clients give the failure of the round.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

from umbel.errors import SecAggError

SECURITY_BITS = 40
"""The sparse graph fails to hide a client with probability at most 2^-40 ..."""
CORRECTNESS_BITS = 20
"""... and fails to finish, at the stated dropout, with probability at most 2^-20."""


class Degree(NamedTuple):
    """Neighbours a client, and shares needed to recover one of its secrets."""

    k: int
    threshold: int


def complete_threshold(n: int, corrupt: int) -> int:
    """The smallest t with 2t > n + n_C: two disjoint honest views cannot both reach it."""
    return (n + corrupt) // 2 + 1


def sparse_leak_bits(n: int, k: int, threshold: int, corrupt: int, dropped: int, semi_malicious: bool = True) -> float:
    """log2 of the probability that some client of the sparse graph is not hidden (-inf: impossible).

    The two events: enough corrupt neighbours to recover a secret (t of them; 2t - k suffice where a
    malicious coordinator can show two sets of survivors), or a client whose neighbours are all corrupt
    or dropped, so that the honest graph is not connected.
    """
    enough = 2 * threshold - k if semi_malicious else threshold
    caught = _log2_at_least(enough, n - 1, corrupt, k)
    alone = _log2_at_least(k, n - 1, min(n - 1, corrupt + dropped), k)
    worst = max(caught, alone)
    return worst + math.log2(n) + 1.0 if worst > -math.inf else -math.inf


def sparse_loss_bits(n: int, k: int, threshold: int, dropped: int) -> float:
    """log2 of the probability that some surviving client has fewer than ``threshold`` surviving neighbours."""
    lost = _log2_at_least(k - threshold + 1, n - 1, dropped, k)
    return lost + math.log2(n) if lost > -math.inf else -math.inf


@lru_cache(maxsize=256)
def find_degree(n: int, corrupt: int, dropped: int, semi_malicious: bool = True) -> Degree:
    """The smallest even k, with its smallest t, that meets both bounds.

    Args:
        n: cohort.
        corrupt: clients that may collude with the coordinator.
        dropped: clients that may drop out.
        semi_malicious: demand 2t > k + corrupt neighbours, as umbel always does; False gives the
            semi-honest numbers, for comparison with the paper.

    Raises:
        SecAggError: no k below n does; the complete graph is the way out.
    """
    for k in range(2, n, 2):
        low, high = (k // 2 + 1 if semi_malicious else 2), k
        # Leaking falls and losing rises with t, so the smallest secret t decides.
        while low < high:
            middle = (low + high) // 2
            if sparse_leak_bits(n, k, middle, corrupt, dropped, semi_malicious) <= -SECURITY_BITS:
                high = middle
            else:
                low = middle + 1
        secret = sparse_leak_bits(n, k, low, corrupt, dropped, semi_malicious) <= -SECURITY_BITS
        if low <= k and secret and sparse_loss_bits(n, k, low, dropped) <= -CORRECTNESS_BITS:
            return Degree(k, low)
    raise SecAggError(
        f"No sparse graph of {n} clients tolerates {corrupt} corrupt and {dropped} dropped ones: set secagg.graph to "
        '"complete" or lower secagg.corrupt or secagg.dropout.'
    )


@lru_cache(maxsize=1 << 16)
def _log2_at_least(least: int, population: int, marked: int, drawn: int) -> float:
    """log2 P(X >= least) for X ~ Hypergeometric(population, marked, drawn), summed in log space."""
    low, high = max(0, drawn - (population - marked)), min(marked, drawn)
    if least <= low:
        return 0.0
    if least > high:
        return -math.inf
    logs = [_log_choose(marked, x) + _log_choose(population - marked, drawn - x) for x in range(least, high + 1)]
    top = max(logs)
    total = top + math.log(math.fsum(math.exp(value - top) for value in logs)) - _log_choose(population, drawn)
    return min(0.0, total / math.log(2))


def _log_choose(n: int, r: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(r + 1) - math.lgamma(n - r + 1)
