"""Identities of simulated sites, where one machine plays them all."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache, lru_cache

from privacy.secagg.agreement import site_id
from privacy.secagg.identity import Identity, Roster, SimulationAuthority
from umbel.machine import derived


def simulated_name(index: int) -> str:
    """The name of the site that plays partition ``index``."""
    return f"{index:06d}"


@cache
def _authority() -> SimulationAuthority:
    return SimulationAuthority(derived("simulation authority"))


def simulated_identity(name: str) -> Identity:
    """The identity of a simulated site: the same in every process of this machine."""
    return _authority().identity(site_id(name))


@lru_cache(maxsize=8)
def simulated_roster(clients: int) -> Roster:
    """The roster of partitions 0 to ``clients`` - 1."""
    return roster_of(simulated_name(index) for index in range(clients))


def roster_of(names: Iterable[str]) -> Roster:
    """The roster of simulated sites by name."""
    return _authority().roster(site_id(name) for name in names)
