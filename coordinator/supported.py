"""What the round loop drives today; the rest of the planner's offers is refused before anybody is contacted."""

from __future__ import annotations

from privacy.plan import PrivacyPlan
from privacy.secagg import SecAggParameters
from strategies.base import AdapterStrategy
from umbel.config import RunConfig
from umbel.errors import StrategyError

_SIDE_TERMS = frozenset({"fedex-lora", "flora"})


def check_supported(config: RunConfig, strategy: AdapterStrategy) -> None:
    """Refuses what the library offers but a run would do wrongly.

    Raises:
        StrategyError: two passes, side terms or mixed ranks.
    """
    chosen = config.strategy
    reason = ""
    if strategy.passes > 1:
        reason = f"strategy.name={chosen.name} sends two uploads a round"
    elif chosen.name in _SIDE_TERMS:
        reason = f"strategy.name={chosen.name} keeps a side term beside the base"
    elif chosen.ranks == "mixed":
        reason = "strategy.ranks=mixed needs one adapter a rank"
    if reason:
        raise StrategyError(
            f"{reason[0].upper()}{reason[1:]}, which the round loop does not drive yet: use it from Python, or choose "
            "fedit, ffa-lora, rolora, fedsa-lora, fedsvd, flexlora or fed-sb with the defaults."
        )


def check_privacy(config: RunConfig) -> None:
    """Refuses a privacy plan or a secure aggregation that cannot work, as far as options alone tell.

    A site's number of examples and the adapter's size are not known yet: a plan for an ample number of examples
    and a short vector stand in for them.

    Raises:
        PlanError: the guarantee cannot be stated.
        SecAggError: the cohort cannot aggregate securely.
    """
    privacy, federation = config.privacy, config.federation
    if privacy.unit == "example":
        PrivacyPlan.from_config(config, examples=min(16 * config.train.batch_size, int(1 / privacy.delta)))
    elif privacy.unit == "client" and privacy.place != "secagg":
        PrivacyPlan.from_config(config)
    if config.secagg.enabled:
        cohort = federation.clients if federation.cohort == "all" else federation.cohort_size
        # The smallest group must stand by itself: what a client is hidden in is its group.
        SecAggParameters.choose(config.secagg, cohort // max(config.strategy.groups, 1), length=1 << 10, rotate=True)
