"""OpenRound: the round that a run began within the site's hours, which may be finished after them."""

from __future__ import annotations

import json

from client.outcome import order_key
from client.store import NodeStore
from umbel.config import RunConfig
from umbel.wire import TrainOrder

_NAME = "open-round"


class OpenRound:
    """Of one run, remembered over restarts.

    Args:
        store: of the run, at this site.
        config: of the run.
    """

    def __init__(self, store: NodeStore, config: RunConfig) -> None:
        self._store, self._config = store, config

    def covers(self, order: TrainOrder) -> bool:
        """Whether the order belongs to the round that began: the very order again, or a later pass over it.

        Another attempt at a secure sum is the same order: what is trained on does not differ.
        """
        try:
            body = json.loads(self._store.get(_NAME) or b"")
            known, key = body["round"], body["key"]
        except (ValueError, KeyError, TypeError):
            return False
        if order.pass_number > 1:  # nothing is trained by it, and without a first pass it is refused anyway
            return bool(order.round == known)
        return bool(order_key(order, self._config) == key)

    def note(self, order: TrainOrder) -> None:
        """Remembers that the order's round begins. Raises RunError when that cannot be written."""
        if order.pass_number == 1:
            body = {"round": order.round, "key": order_key(order, self._config)}
            self._store.put(_NAME, json.dumps(body).encode())
