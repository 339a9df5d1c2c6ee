"""metered: the figures of an agent for the site's own Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from client.agent.house import House
from client.site import Site


@contextmanager
def metered(house: House, address: str) -> Iterator[Callable[[Site], Site] | None]:
    """What to wrap around each site so that it is measured, while ``address`` serves the figures; None without one.

    Args:
        house: of the site; its ledger is shown too.
        address: ``host:port`` or ``unix:/path``, or "" for no figures.

    Raises:
        ConfigError: the address is none.
        DeployError: nothing can listen there.
    """
    if not address:
        yield None
        return
    from prometheus_client import CollectorRegistry

    from client.metrics import MeasuredSite, SiteMetrics
    from umbel.exposition import Endpoint, expose

    registry = CollectorRegistry()
    metrics = SiteMetrics(registry)
    metrics.watch(house.ledger)
    with expose(registry, Endpoint.parse(address)):
        yield lambda site: MeasuredSite(site, metrics)
