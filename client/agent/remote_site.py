"""RemoteSite: the site as the courier sees it, behind a Unix socket or mutual TLS."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import grpc
from flwr.app import Context

from client.agent import agent_pb2 as pb
from client.agent import orders
from client.agent.agent_pb2_grpc import SiteAgentStub
from client.agent.bundle import Bundle, running_bundle
from client.agent.faults import understood
from client.agent.frames import MESSAGE, TOTAL, read_parts
from client.site import LedgerSummary, Site
from umbel.errors import ConfigError, SiteError
from umbel.tls import open_channel
from umbel.wire import Description, EvaluateOrder, MessageType, SecAggStep, TrainOrder, TrainReply

T = TypeVar("T")
CHANNEL_OPTIONS: tuple[tuple[str, Any], ...] = (
    ("grpc.max_receive_message_length", MESSAGE),
    ("grpc.max_send_message_length", MESSAGE),
    ("grpc.enable_http_proxy", 0),
    ("grpc.enable_retries", 0),
)


class RemoteSite(Site):
    """The site behind an agent. Usable as a context manager; whatever fails is an UmbelError with its sentence.

    Args:
        address: ``unix:///path/agent.sock`` or ``host:port``.
        run: id of the run.
        options: of the run, flat.
        tls: folder of the caller's certificate, for ``host:port``: ca.pem, cert.pem, key.pem (``umbel.tls``).
        bundle: that the caller runs from.
        timeout: seconds for one call.
        wait: seconds for the agent to be there: it may just be starting again.
        limit: bytes of one reply at most.

    Raises:
        ConfigError: the address and ``tls`` do not go together.
        SiteError, DeployError: nobody listens there, or the certificates do not fit.
    """

    def __init__(
        self,
        address: str,
        *,
        run: str,
        options: Mapping[str, bool | int | float | str],
        tls: Path | None = None,
        bundle: Bundle | None = None,
        timeout: float = 600.0,
        wait: float = 30.0,
        limit: int = TOTAL,
    ) -> None:
        bundle = bundle or Bundle()
        text = json.dumps(dict(options), sort_keys=True, allow_nan=False)
        self._run = pb.Run(id=run, options=text, bundle=pb.Bundle(hash=bundle.hash, code=bundle.code))
        self._address, self._timeout, self._limit = address, timeout, limit
        self._channel = _open(address, tls, wait)
        try:
            grpc.channel_ready_future(self._channel).result(timeout=wait)
        except grpc.FutureTimeoutError:
            self._channel.close()
            raise SiteError(f"No agent answers at {address}: start it with umbel site serve.") from None
        self._stub = SiteAgentStub(self._channel)

    def close(self) -> None:
        """Closes the connection."""
        self._channel.close()

    def __enter__(self) -> RemoteSite:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def describe(self) -> Description:
        """See Site."""
        said = self._asked(lambda: self._stub.Describe(self._run, timeout=self._timeout))
        return Description(said.site, said.spec_hash, said.base_hash, said.rank, said.version)

    def train(self, order: TrainOrder) -> TrainReply | SecAggStep:
        """See Site."""
        parts = orders.train_order_parts(self._run, order)
        return orders.read_train_answer(*self._exchanged(self._stub.Train, parts))

    def secagg(self, stage: MessageType, step: SecAggStep) -> SecAggStep:
        """See Site."""
        parts = orders.secagg_parts(step, run=self._run, stage=stage)
        return orders.read_secagg(*self._exchanged(self._stub.SecAgg, parts))

    def evaluate(self, order: EvaluateOrder) -> dict[str, float]:
        """See Site."""
        parts = orders.evaluate_order_parts(self._run, order)
        return orders.read_metrics(self._exchanged(self._stub.Evaluate, parts)[0])

    def ledger(self) -> LedgerSummary:
        """See Site."""
        said = self._asked(lambda: self._stub.Ledger(self._run, timeout=self._timeout))
        return LedgerSummary(said.epsilon, said.delta, said.events)

    def dry_run(self) -> tuple[str, ...]:
        """Why the site would not train this run, one sentence a reason; empty if it would."""
        said = self._asked(lambda: self._stub.DryRun(self._run, timeout=self._timeout))
        return tuple(said.reasons)

    def _exchanged(self, method: Any, parts: Any) -> Any:
        def call() -> Any:
            replies = method(parts, timeout=self._timeout)
            try:
                return read_parts(replies, self._limit)
            finally:
                with suppress(grpc.RpcError):
                    replies.cancel()  # frees the stream when the reply could not be read

        return self._asked(call)

    def _asked(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except grpc.RpcError as error:
            raise understood(error, self._address, self._timeout) from None


def remote_site(context: Context) -> RemoteSite:
    """The agent that a node's configuration names: ``agent``, for ``host:port`` also ``agent-tls``, a folder.

    Raises:
        ConfigError: the node's configuration is not of that form.
        SiteError, DeployError: the agent cannot be reached.
    """
    node = context.node_config
    address, tls = node.get("agent"), node.get("agent-tls")
    wait = node.get("agent-wait", 30.0)
    if not isinstance(address, str) or not (tls is None or isinstance(tls, str)) or not isinstance(wait, int | float):
        raise ConfigError(
            "This node's agent cannot be read: start it with --node-config 'agent=\"unix:///run/umbel/agent.sock\"', "
            'or with \'agent="host:port" agent-tls="/folder/with/ca.pem"\'.'
        )
    timeout = context.run_config.get("federation.timeout", 600.0)
    return RemoteSite(
        address,
        run=str(context.run_id),
        options={
            key: value for key, value in context.run_config.items() if isinstance(value, bool | int | float | str)
        },
        tls=Path(tls) if tls else None,
        bundle=running_bundle(),
        timeout=float(timeout) if isinstance(timeout, int | float) else 600.0,
        wait=float(wait),
    )


def _open(address: str, tls: Path | None, wait: float) -> grpc.Channel:
    if address.startswith("unix:"):
        if tls is not None:
            raise ConfigError("An agent on a Unix socket takes no certificates: leave agent-tls out.")
        return grpc.insecure_channel(address, options=CHANNEL_OPTIONS)
    if tls is None:
        raise ConfigError(
            f"The agent at {address} is reached by mutual TLS only: set agent-tls to the folder with ca.pem, cert.pem "
            "and key.pem, or use a Unix socket."
        )
    return open_channel(address, tls, role="agent", timeout=wait, options=CHANNEL_OPTIONS)
