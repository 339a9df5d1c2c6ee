"""From a run's configuration to a round's parameters, computed alike at both ends.

Nobody tells a client its parameters: it derives them from its own configuration and the size of the cohort,
so that a coordinator that uses others gets signatures that do not verify.
"""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache

from privacy.accounting import calibrate
from privacy.plan import PrivacyPlan
from privacy.secagg.context import RoundContext, broadcast_hash
from privacy.secagg.coordinates import Coordinate
from privacy.secagg.parameters import SecAggParameters
from privacy.terms import Relation
from umbel.adapter import Vector
from umbel.config import RunConfig
from umbel.errors import SecAggError

MAX_EXAMPLES = 4096
"""Largest weight of one client; a larger number of examples counts as this."""
_MOST_SEEN = float(1 << 24)
_LOSS_RESOLUTION = 1 / 256


def site_id(name: str) -> int:
    """A site's id in the protocol: 64 bits of SHA-256 over its name."""
    return int.from_bytes(hashlib.sha256(b"umbel site " + name.encode()).digest()[:8], "big")


@lru_cache(maxsize=64)
def agree(config: RunConfig, cohort: int, length: int) -> SecAggParameters:
    """The parameters of a round.

    The metrics that travel inside the masked vector are ``examples`` and ``seen`` and, without differential privacy,
    ``loss`` (summed over the examples seen). Under client-level differential privacy there are none, because the noise
    would not cover them.

    Args:
        config: of the run.
        cohort: clients invited.
        length: values of an upload.

    Raises:
        SecAggError: the cohort cannot aggregate securely.
        PlanError: the privacy plan has no guarantee.
    """
    if config.privacy.unit == "client":
        return _with_noise(config, cohort, length)
    coordinates = [Coordinate("examples", _MOST_SEEN), Coordinate("seen", _MOST_SEEN)]
    if config.privacy.unit == "none":
        coordinates.append(Coordinate("loss", _MOST_SEEN, resolution=_LOSS_RESOLUTION))
    return SecAggParameters.choose(
        config.secagg,
        cohort,
        length,
        max_weight=MAX_EXAMPLES if config.federation.weights == "examples" else 0,
        coordinates=tuple(coordinates),
        rotate=True,
    )


@lru_cache(maxsize=16)
def noise_multiplier(config: RunConfig, cohort: int, length: int) -> float:
    """z of distributed differential privacy: fixed, or the smallest that keeps the budget over all rounds.

    Raises:
        PlanError: no noise keeps the budget.
    """
    privacy = config.privacy
    if privacy.noise == "fixed":
        return privacy.noise_multiplier
    relation = Relation(privacy.relation)
    return calibrate(
        privacy.epsilon,
        privacy.delta,
        lambda z: (_noised(config, cohort, length, z).encoding.event(relation, config.federation.rounds),),
    )


def client_plan(config: RunConfig, cohort: int, length: int) -> PrivacyPlan | None:
    """The plan of client-level privacy under secure aggregation, with the lattice that the round uses.

    Raises:
        PlanError: the guarantee cannot be stated, or fixed noise overspends the budget.
    """
    encoding = agree(config, cohort, length).encoding
    if encoding.noise is None:
        return None
    factor = 2.0 if config.privacy.relation == "replace-one" else 1.0
    fixed = config.privacy.model_copy(update={"noise": "fixed", "noise_multiplier": encoding.noise.multiplier / factor})
    return PrivacyPlan.from_config(
        config.model_copy(update={"privacy": fixed}),
        encoding=encoding.noise.lattice(encoding.model_width, encoding.scale),
    )


def _with_noise(config: RunConfig, cohort: int, length: int) -> SecAggParameters:
    if config.privacy.place != "secagg":
        raise SecAggError(
            f"privacy.place={config.privacy.place} with secure aggregation noises a sum that nobody trusted reads: "
            "set privacy.place=secagg, or privacy.unit=example."
        )
    return _noised(config, cohort, length, noise_multiplier(config, cohort, length))


def _noised(config: RunConfig, cohort: int, length: int, z: float) -> SecAggParameters:
    return SecAggParameters.choose(
        config.secagg.model_copy(update={"clip": config.privacy.clipping_norm}),
        cohort,
        length,
        noise_multiplier=z,
        mechanism="discrete-gaussian" if config.privacy.mechanism == "discrete-gaussian" else "skellam",
        rotate=True,
    )


def round_context(config: RunConfig, run: str, round_number: int, attempt: int, adapter: Vector) -> RoundContext:
    """The context of one attempt at a round: what was broadcast and under which configuration."""
    options = json.dumps(config.to_flat(), sort_keys=True, separators=(",", ":")).encode()
    return RoundContext(run, round_number, attempt, broadcast_hash(adapter, options))
