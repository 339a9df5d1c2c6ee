"""DeviceActor: one process that plays many virtual devices on one warm base."""

from __future__ import annotations

import hashlib
import os
import pickle
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from flwr.app import RecordDict

from simulations.clients import ClientSource, ManyClient, answer_all, load_client
from simulations.folding import fold_here
from simulations.orders import Answer, Batch, adopt_identity, make_context, make_message
from umbel import __version__

_KEPT_CONTENTS = 4
"""Broadcasts that an actor holds: this round's, one for each rank."""


@dataclass(frozen=True, slots=True)
class Ready:
    """What an actor says of itself when it has loaded everything.

    Attributes:
        version: of umbel on its machine.
        secret: SHA-256 over its machine's secret, from which simulated identities are derived; "" when not needed.
        node: Ray's id of its machine.
        process: its process id.
        seconds: that loading took.
    """

    version: str
    secret: str
    node: str
    process: int
    seconds: float


def secret_fingerprint() -> str:
    """SHA-256 over a value derived from this machine's secret: equal on machines that share it."""
    from umbel.machine import derived

    return hashlib.sha256(derived("simulation fingerprint")).hexdigest()


class DeviceActor:
    """Carries out batches of orders; nothing of a device stays here but caches.

    Args:
        client: what answers, or where it stands.
        run_config: flat options of the run.
        nodes: number of virtual devices.
        lanes: most devices that train in one batch.
        secret: whether devices derive keys from the machine's secret.
    """

    def __init__(self, client: ClientSource, run_config: dict[str, Any], nodes: int, lanes: int, secret: bool) -> None:
        adopt_identity()
        self._run_config = run_config
        self._nodes = nodes
        self._lanes = lanes
        self._secret = secret
        self._client = load_client(client)
        self._contents: OrderedDict[str, Any] = OrderedDict()

    def ready(self) -> Ready:
        """Loads what the client needs; raises UmbelError when that fails."""
        import ray

        started = time.perf_counter()
        if isinstance(self._client, ManyClient):
            self._client.warm(self._run_config)
        secret = secret_fingerprint() if self._secret else ""
        node = ray.get_runtime_context().get_node_id()
        return Ready(__version__, secret, node, os.getpid(), time.perf_counter() - started)

    def run(self, batch: Batch) -> Answer:
        """Carries out a batch. A client that raises answers with an error and disturbs no other."""
        started = time.perf_counter()
        contents = [self._content(content) for content in batch.contents]
        messages = [make_message(order.metadata, contents[order.content]) for order in batch.orders]
        contexts = [
            make_context(order.node, self._nodes, self._run_config, pickle.loads(order.state))  # noqa: S301 # our own
            if order.state
            else make_context(order.node, self._nodes, self._run_config, RecordDict())
            for order in batch.orders
        ]
        fold, replies = None, []
        if batch.fold is None:
            replies = answer_all(self._client, messages, contexts, self._lanes)
        else:
            plan = pickle.loads(self._content(batch.fold))  # noqa: S301 # our own
            fold = fold_here(self._client, plan, messages, contexts, self._lanes)
        states = {}
        for order, context in zip(batch.orders, contexts, strict=True):
            if context.state or order.state:
                state = pickle.dumps(context.state, protocol=pickle.HIGHEST_PROTOCOL)
                if state != order.state:
                    states[order.node] = state
        return Answer(replies, fold, states, time.perf_counter() - started)

    def _content(self, content: Any) -> Any:
        """What a reference stands for, fetched once a process; anything else is itself."""
        import ray

        if not isinstance(content, ray.ObjectRef):
            return content
        key = content.hex()
        if key not in self._contents:
            self._contents[key] = ray.get(content)
            while len(self._contents) > _KEPT_CONTENTS:
                self._contents.popitem(last=False)
        self._contents.move_to_end(key)
        return self._contents[key]
