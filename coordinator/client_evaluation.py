"""Evaluation at the clients: each measures the global adapter, with what it keeps of its own, on held-out data."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from flwr.app import RecordDict

from coordinator.collect import Broadcast
from coordinator.courier import Courier
from coordinator.population import Participant
from coordinator.tracking import CLIENTS
from umbel import wire
from umbel.errors import WireError
from umbel.wire import EvaluateOrder, MessageType

logger = logging.getLogger("flwr.umbel")


class ClientEvaluator:
    """Asks clients for counts and adds them up.

    For a personal method it is the only evaluation of the whole model: the coordinator holds its shared part alone.
    The counts are of single clients, so a run refuses this under secure aggregation and under differential
    privacy, and every site refuses too.

    Args:
        courier: how messages travel.
        timeout: seconds to wait for the clients.
    """

    def __init__(self, courier: Courier, *, timeout: float) -> None:
        self._courier = courier
        self._timeout = timeout

    def measure(self, members: Sequence[Participant], broadcast: Broadcast) -> dict[str, dict[str, Any]]:
        """Figures under ``CLIENTS``: accuracy and mean loss over all held-out examples, and how many clients answered.

        A reply that is impossible (more right answers than examples, a value that is not finite) is logged and left
        out. Without any held-out example there are no figures: {}.

        Args:
            members: to ask.
            broadcast: of the state to evaluate; each client is sent the adapter of its rank.
        """
        orders: list[tuple[int, Callable[[], RecordDict]]] = []
        for member in members:
            spec, adapter = broadcast.adapter(member.rank)
            order = EvaluateOrder(broadcast.round, spec.hash, adapter, broadcast.extras)
            orders.append((member.node, partial(wire.pack_evaluate_order, order)))
        sums = {"examples": 0.0, "correct": 0.0, "loss": 0.0}
        answered = 0
        group = f"evaluate {broadcast.round}"
        for reply in self._courier.ask(MessageType.EVALUATE, orders, timeout=self._timeout, group=group):
            if reply.records is None:
                logger.warning("A client was not evaluated: %s", reply.reason)
                continue
            try:
                counts = _checked(wire.unpack_metrics(reply.records))
            except WireError as error:
                logger.warning("A client was not evaluated: %s", error)
                continue
            answered += counts["examples"] > 0
            for key in sums:
                sums[key] += counts[key]
        if not sums["examples"]:
            return {}
        figures = {
            "accuracy": sums["correct"] / sums["examples"],
            "loss": sums["loss"] / sums["examples"],
            "count": int(sums["examples"]),
            "clients": answered,
        }
        return {CLIENTS: figures}


def _checked(metrics: dict[str, float]) -> dict[str, float]:
    counts = {key: metrics.get(key, math.nan) for key in ("examples", "correct", "loss")}
    if not all(math.isfinite(value) and value >= 0 for value in counts.values()):
        raise WireError(f"Its counts {counts} are no numbers of at least 0.")
    if counts["correct"] > counts["examples"]:
        raise WireError(f"It claims {counts['correct']:g} right answers of {counts['examples']:g} examples.")
    return counts
