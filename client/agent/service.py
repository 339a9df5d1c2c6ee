"""The gRPC services: bytes to calls of the Agent and back. Everything else is the Agent's."""

# ruff: noqa: N802 (methods are named as agent.proto names them)

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import grpc

from client.agent import agent_pb2 as pb
from client.agent import orders
from client.agent.agent import Agent, Call
from client.agent.agent_pb2_grpc import SiteAgentServicer, SiteDeskServicer
from client.agent.bundle import Bundle
from client.agent.faults import refuse
from client.agent.frames import Arrays, read_parts
from client.agent.watch import Watch
from client.site import LedgerSummary
from umbel import __version__
from umbel.errors import DeployError, SiteError, UmbelError, WireError
from umbel.tls import PeerCheck, peer_of
from umbel.tls.peer import Peer
from umbel.wire import Description, EvaluateOrder, MessageType, SecAggStep, TrainOrder

T = TypeVar("T")
_RECEIVING = 2
_LONGEST = 7 * 24 * 3600.0


class AgentService(SiteAgentServicer):
    """What couriers may call.

    Args:
        agent: answers.
        coordinator: whose socket this service listens on; None where certificates say who calls.
    """

    def __init__(self, agent: Agent, coordinator: str | None = None) -> None:
        self._agent = agent
        self._coordinator = coordinator
        self._limit = agent.house.policy.limits.message << 20
        # Each message that is being received may hold the limit; a third waits for its turn.
        self._receiving = threading.BoundedSemaphore(_RECEIVING)

    def Describe(self, request: pb.Run, context: grpc.ServicerContext) -> pb.Description:
        """See SiteAgent in agent.proto."""
        return _guarded(context, lambda: _description(self._agent.describe(self._asked("describe", request, context))))

    def Ledger(self, request: pb.Run, context: grpc.ServicerContext) -> pb.LedgerSummary:
        """See SiteAgent in agent.proto."""
        return _guarded(context, lambda: _summary(self._agent.ledger(self._asked("ledger", request, context))))

    def DryRun(self, request: pb.Run, context: grpc.ServicerContext) -> pb.Verdict:
        """See SiteAgent in agent.proto."""

        def verdict() -> pb.Verdict:
            reasons = self._agent.dry_run(self._asked("dry run", request, context))
            return pb.Verdict(allowed=not reasons, reasons=reasons)

        return _guarded(context, verdict)

    def Train(self, request_iterator: Iterator[pb.Part], context: grpc.ServicerContext) -> Iterator[pb.Part]:
        """See SiteAgent in agent.proto."""

        def work(call: Call, order: TrainOrder) -> Iterator[pb.Part]:
            reply = self._agent.train(call, order)
            if isinstance(reply, SecAggStep):
                return orders.secagg_parts(reply)
            return orders.train_reply_parts(reply)

        yield from self._exchange("train", request_iterator, context, orders.read_train_order, work)

    def SecAgg(self, request_iterator: Iterator[pb.Part], context: grpc.ServicerContext) -> Iterator[pb.Part]:
        """See SiteAgent in agent.proto."""

        def read(head: pb.Head, arrays: Arrays) -> tuple[MessageType, SecAggStep]:
            return orders.read_stage(head), orders.read_secagg(head, arrays)

        def work(call: Call, order: tuple[MessageType, SecAggStep]) -> Iterator[pb.Part]:
            return orders.secagg_parts(self._agent.secagg(call, *order))

        yield from self._exchange("secagg", request_iterator, context, read, work)

    def Evaluate(self, request_iterator: Iterator[pb.Part], context: grpc.ServicerContext) -> Iterator[pb.Part]:
        """See SiteAgent in agent.proto."""

        def work(call: Call, order: EvaluateOrder) -> Iterator[pb.Part]:
            return orders.metrics_parts(self._agent.evaluate(call, order))

        yield from self._exchange("evaluate", request_iterator, context, orders.read_evaluate_order, work)

    def _exchange(
        self,
        action: str,
        parts: Iterator[pb.Part],
        context: grpc.ServicerContext,
        read: Callable[[pb.Head, Arrays], T],
        work: Callable[[Call, T], Iterator[pb.Part]],
    ) -> Iterator[pb.Part]:
        def answer() -> Iterator[pb.Part]:
            with self._arriving(action, context) as whose:
                _deadline(context)
                with self._receiving:
                    head, arrays = read_parts(parts, self._limit)
                whose["run"] = head.run.id[:128]
                call, order = self._call(head.run, context), read(head, arrays)
            return work(call, order)

        yield from _guarded(context, answer)

    def _asked(self, action: str, run: pb.Run, context: grpc.ServicerContext) -> Call:
        with self._arriving(action, context) as whose:
            whose["run"] = run.id[:128]
            return self._call(run, context)

    @contextmanager
    def _arriving(self, action: str, context: grpc.ServicerContext) -> Iterator[dict[str, Any]]:
        """What is refused inside never becomes a call of the Agent, which would note it."""
        whose = {"coordinator": self._coordinator or "", "peer": "", "run": "", "action": action}
        try:
            yield whose
        except UmbelError as error:
            with suppress(UmbelError):  # a certificate that cannot be read names nobody
                peer = peer_of(context)
                whose["peer"] = peer.name if peer else f"socket of {self._coordinator}"
            self._agent.turn_away(whose, error)
            raise

    def _call(self, run: pb.Run, context: grpc.ServicerContext) -> Call:
        bundle = Bundle(run.bundle.hash, run.bundle.code)
        if bundle.hash and (len(bundle.hash) != 64 or set(bundle.hash) - set("0123456789abcdef")):
            raise WireError("A call names a bundle by something that is no hash: both ends must run the same umbel.")
        if not run.id or len(run.id) > 64:
            raise WireError("A call names no run: both ends must run the same version of umbel.")
        peer = peer_of(context)
        coordinator = self._coordinator or (self._agent.house.policy.coordinator_of(peer.name) if peer else None)
        if coordinator is None:
            raise SiteError(
                f"No coordinator of this site has couriers called {peer.name if peer else 'nothing'!r}: its owner can "
                "add the name to callers in site.toml."
            )
        watch = Watch(context.is_active, _deadline(context), self._agent.house.policy.limits.memory)
        name = peer.name if peer else f"socket of {coordinator}"
        return Call(coordinator, name, run.id, run.options, bundle, watch)


class CourierCheck(PeerCheck):
    """Lets in what the policy names, and notes who else came.

    Args:
        agent: whose port it is.
        folder: of the agent's certificate.
    """

    def __init__(self, agent: Agent, folder: Path) -> None:
        policy = agent.house.policy
        known = {name for coordinator in policy.coordinators for name in coordinator.callers}
        super().__init__(folder, roles=policy.listen.roles, names=known)
        self._agent = agent

    def check(self, peer: Peer) -> None:
        """See PeerCheck."""
        try:
            super().check(peer)
        except DeployError as error:
            whose = {"coordinator": "", "peer": peer.name[:128], "run": "", "action": "connect"}
            self._agent.turn_away(whose, error)
            raise


class DeskService(SiteDeskServicer):
    """What the site's own people may ask, on the site's own socket."""

    def __init__(self, agent: Agent, listening: tuple[str, ...]) -> None:
        self._agent, self._listening = agent, listening

    def Status(self, request: pb.StatusQuestion, context: grpc.ServicerContext) -> pb.StatusAnswer:
        """See SiteDesk in agent.proto."""
        agent, counts = self._agent, self._agent.counts
        head = agent.log.head
        return pb.StatusAnswer(
            site=agent.house.policy.name,
            version=__version__,
            seconds=time.monotonic() - counts.since,
            working=counts.working,
            base=counts.base,
            asked=counts.asked,
            refused=counts.refused,
            left_bytes=counts.left_bytes,
            log_lines=head.number,
            log_head=head.hash,
            listening=self._listening,
        )


def _deadline(context: grpc.ServicerContext) -> float:
    """By ``time.monotonic``. Raises WireError for a call that would wait for ever."""
    left = context.time_remaining()
    if left is None or left > _LONGEST:  # gRPC says centuries where there is none
        raise WireError("A call came without a deadline of at most a week: both ends must run the same umbel.")
    return time.monotonic() + left


def _guarded(context: grpc.ServicerContext, work: Callable[[], T]) -> T:
    try:
        return work()
    except Exception as error:
        refuse(context, error)


def _description(found: Description) -> pb.Description:
    return pb.Description(
        site=found.site,
        spec_hash=found.spec_hash,
        base_hash=found.base_hash,
        rank=found.rank,
        version=found.version,
    )


def _summary(found: LedgerSummary) -> pb.LedgerSummary:
    return pb.LedgerSummary(epsilon=found.epsilon, delta=found.delta, events=found.events)
