"""The LoRA rank that a site trains at."""

from __future__ import annotations

from umbel.config import RunConfig
from umbel.errors import SiteError


def client_rank(config: RunConfig, index: int, own: int | None = None) -> int:
    """The rank of partition ``index``: what its operator set for this machine, else its turn in the list of the run.

    Args:
        config: of the run.
        index: of the partition, from 0.
        own: ``rank`` of the node's configuration, or None.

    Raises:
        SiteError: the node's rank is outside 1 to lora.rank, or the run wants one rank for all.
    """
    top, mixed = config.lora.rank, config.strategy.ranks == "mixed"
    if own is not None:
        if not 1 <= own <= top:
            raise SiteError(f"This node is set to LoRA rank {own}, outside 1 to lora.rank {top}: change its rank.")
        if own != top and not mixed:
            raise SiteError(
                f"This node is set to LoRA rank {own}, but all clients of this run train at {top}: set strategy.ranks "
                "to mixed, or take the node's rank away."
            )
        return own
    if not mixed or config.strategy.client_ranks == "top":
        return top
    ranks = [int(rank) for rank in config.strategy.client_ranks.split(",")]
    return ranks[index % len(ranks)]
