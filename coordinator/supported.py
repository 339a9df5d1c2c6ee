"""What is refused before anybody is contacted, beside what the planner refuses."""

from __future__ import annotations

from privacy.plan import PrivacyPlan
from privacy.secagg import SecAggParameters
from strategies.planner import plan
from umbel.config import RunConfig
from umbel.errors import ConfigError


def check_supported(config: RunConfig) -> None:
    """Refuses what the planner refuses, and options that together break what one of them promises.

    Raises:
        StrategyError: the strategy cannot work so.
        ConfigError: evaluation at clients would tell counts that masks or noise are to hide.
    """
    plan(config)
    if not config.evaluate.clients:
        return
    if config.privacy.unit != "none":
        raise ConfigError(
            "evaluate.clients reports how many of a client's own examples are answered right, which no noise covers: "
            "set evaluate.clients to false or privacy.unit to none."
        )
    if config.secagg.enabled:
        raise ConfigError(
            "evaluate.clients reports the counts of single clients, which secure aggregation is there to hide: set "
            "evaluate.clients or secagg.enabled to false."
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
