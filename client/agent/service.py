"""The gRPC services: bytes to calls of the Agent and back. Everything else is the Agent's."""

# ruff: noqa: N802 (methods are named as agent.proto names them)

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

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
from umbel.errors import SiteError, WireError
from umbel.tls import peer_of
from umbel.wire import Description, SecAggStep

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
        return _guarded(context, lambda: _description(self._agent.describe(self._call(request, context))))

    def Ledger(self, request: pb.Run, context: grpc.ServicerContext) -> pb.LedgerSummary:
        """See SiteAgent in agent.proto."""
        return _guarded(context, lambda: _summary(self._agent.ledger(self._call(request, context))))

    def DryRun(self, request: pb.Run, context: grpc.ServicerContext) -> pb.Verdict:
        """See SiteAgent in agent.proto."""

        def verdict() -> pb.Verdict:
            reasons = self._agent.dry_run(self._call(request, context))
            return pb.Verdict(allowed=not reasons, reasons=reasons)

        return _guarded(context, verdict)

    def Train(self, request_iterator: Iterator[pb.Part], context: grpc.ServicerContext) -> Iterator[pb.Part]:
        """See SiteAgent in agent.proto."""

        def work(head: pb.Head, arrays: Arrays) -> Iterator[pb.Part]:
            reply = self._agent.train(self._call(head.run, context), orders.read_train_order(head, arrays))
            if isinstance(reply, SecAggStep):
                return orders.secagg_parts(reply)
            return orders.train_reply_parts(reply)

        yield from self._exchange(request_iterator, context, work)

    def SecAgg(self, request_iterator: Iterator[pb.Part], context: grpc.ServicerContext) -> Iterator[pb.Part]:
        """See SiteAgent in agent.proto."""

        def work(head: pb.Head, arrays: Arrays) -> Iterator[pb.Part]:
            stage, step = orders.read_stage(head), orders.read_secagg(head, arrays)
            return orders.secagg_parts(self._agent.secagg(self._call(head.run, context), stage, step))

        yield from self._exchange(request_iterator, context, work)

    def Evaluate(self, request_iterator: Iterator[pb.Part], context: grpc.ServicerContext) -> Iterator[pb.Part]:
        """See SiteAgent in agent.proto."""

        def work(head: pb.Head, arrays: Arrays) -> Iterator[pb.Part]:
            order = orders.read_evaluate_order(head, arrays)
            return orders.metrics_parts(self._agent.evaluate(self._call(head.run, context), order))

        yield from self._exchange(request_iterator, context, work)

    def _exchange(
        self,
        parts: Iterator[pb.Part],
        context: grpc.ServicerContext,
        work: Callable[[pb.Head, Arrays], Iterator[pb.Part]],
    ) -> Iterator[pb.Part]:
        def answer() -> Iterator[pb.Part]:
            _deadline(context)
            with self._receiving:
                head, arrays = read_parts(parts, self._limit)
            return work(head, arrays)

        yield from _guarded(context, answer)

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
