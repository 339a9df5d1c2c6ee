"""Secure aggregation: the coordinator reads the sum of a cohort and never one client's vector.

Transport-free: bytes in, bytes out. ``docs/threat-model.md`` says who is trusted for what.
"""

from privacy.secagg.aggregate import Aggregate
from privacy.secagg.client import SecAggClient
from privacy.secagg.context import RoundContext, broadcast_hash
from privacy.secagg.coordinates import Coordinate
from privacy.secagg.coordinator import Phase, SecAggCoordinator
from privacy.secagg.distributed_dp import NoisePlan
from privacy.secagg.encoding import Encoding
from privacy.secagg.identity import Identity, Roster, SimulationAuthority
from privacy.secagg.once import FileGuard, MemoryGuard, OnceGuard
from privacy.secagg.parameters import SecAggParameters
from privacy.secagg.reasons import Reason
from privacy.secagg.state import SEAL_KEY_BYTES, Stage

__all__ = [
    "SEAL_KEY_BYTES",
    "Aggregate",
    "Coordinate",
    "Encoding",
    "FileGuard",
    "Identity",
    "MemoryGuard",
    "NoisePlan",
    "OnceGuard",
    "Phase",
    "Reason",
    "Roster",
    "RoundContext",
    "SecAggClient",
    "SecAggCoordinator",
    "SecAggParameters",
    "SimulationAuthority",
    "Stage",
    "broadcast_hash",
]
