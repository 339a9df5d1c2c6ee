"""Agent: does what the policy allows, one piece of work at a time, and writes down what was asked and what left."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np

from client.agent.audit_log import AuditLog
from client.agent.books import anchor, costs, last_anchor, open_books
from client.agent.bundle import Bundle
from client.agent.definition import RunDefinition
from client.agent.house import House
from client.agent.models import check_models
from client.agent.open_round import OpenRound
from client.agent.rules import begin_run, check_hours, check_order, check_run, objections, run_id, site_rank
from client.agent.site_premises import SitePremises
from client.agent.turned_away import TurnedAway
from client.agent.watch import Watch
from client.interrupt import watched
from client.local_site import LocalSite
from client.site import LedgerSummary, Site
from client.store import FileStore, MemoryStore
from umbel import __version__
from umbel.canonical import canonical_json
from umbel.config import RunConfig
from umbel.errors import ConfigError, LedgerError, SiteError, UmbelError
from umbel.logs import about
from umbel.wire import Description, EvaluateOrder, MessageType, SecAggStep, TrainOrder, TrainReply

T = TypeVar("T")
logger = logging.getLogger("umbel.agent")
Note = Callable[[dict[str, Any]], None]
_SITES = 4
_LOADING = frozenset({"describe", "train", "evaluate"})
_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Call:
    """Who asks, and about which run.

    Attributes:
        coordinator: whose courier it is, by the way it came in.
        peer: the courier: the name in its certificate, or the socket.
        run: id of the run, as the courier says.
        options: of the run, a JSON object.
        bundle: that the courier says it runs from.
        watch: whether it still waits.
    """

    coordinator: str
    peer: str
    run: str
    options: str
    bundle: Bundle
    watch: Watch


@dataclass
class Counts:
    """Since the agent started."""

    since: float = field(default_factory=time.monotonic)
    asked: int = 0
    refused: int = 0
    left_bytes: int = 0
    working: str = ""
    base: str = ""


class Agent:
    """The site, as couriers may use it.

    Args:
        house: of the site.
        wrap: put around each site that answers, for example to measure it.

    Raises:
        SiteError: log or keys cannot be trusted.
        LedgerError: the ledger cannot be trusted, or is not the one that the log knows.
    """

    def __init__(self, house: House, *, wrap: Callable[[Site], Site] | None = None) -> None:
        self.house = house
        self.counts = Counts()
        self._wrap = wrap or (lambda site: site)
        self._work = threading.Lock()
        self._books = threading.Lock()
        self._sites: OrderedDict[tuple[str, str, str], tuple[Site, SitePremises]] = OrderedDict()
        self.log = AuditLog(house.log, house.identity(), rotate=house.policy.limits.log << 20)
        house.secret("probe")  # a key that cannot be used is said now, not in the middle of a round
        known = last_anchor(house.log)
        if house.ledger.exists() or known.lines:
            anchor(house.ledger, known)
        open_books(house.ledger, house.policy)
        self._known, _ = anchor(house.ledger, known)
        self._turned_away = TurnedAway(self.log)
        self.log.append("started", version=__version__, policy=house.policy_hash, ledger=self._known.record())

    def close(self) -> None:
        """Notes the end of the agent's work."""
        self._turned_away.close()
        self.log.append("stopped", ledger=self._known.record())

    def idle(self, seconds: float) -> bool:
        """Waits for the work in hand, at most so long; says whether there is none."""
        free = self._work.acquire(timeout=seconds)
        if free:
            self._work.release()
        return free

    def turn_away(self, whose: dict[str, Any], error: UmbelError) -> None:
        """Notes a call that was refused before it could be asked here.

        Args:
            whose: coordinator, peer, run and action, as far as they are known.
            error: with the sentence that the caller got.
        """
        self.counts.asked += 1
        self.counts.refused += 1
        self._turned_away.note(whose, error)

    def describe(self, call: Call) -> Description:
        """See Site: for a run that may train here."""
        return self._answer(call, "describe", {}, lambda site, _: site.describe(), _said)

    def train(self, call: Call, order: TrainOrder) -> TrainReply | SecAggStep:
        """See Site."""
        facts = {"round": order.round, "pass": order.pass_number, **_weight(order.bound)}

        def work(site: Site, premises: SitePremises) -> TrainReply | SecAggStep:
            definition = _definition(call)
            begun = OpenRound(FileStore(premises.folder), definition.config)
            known = begun.covers(order)
            if not known:
                check_hours(self.house.policy)
            check_order(self.house.policy, premises.view, order, len(premises.examples()))
            begin_run(self.house, definition, run_id(definition, call.run))
            if not known:
                begun.note(order)
            return site.train(order)

        def left(reply: TrainReply | SecAggStep) -> dict[str, Any]:
            return _payload(reply.payload) if isinstance(reply, SecAggStep) else _update(reply)

        return self._answer(call, "train", facts, work, left)

    def secagg(self, call: Call, stage: MessageType, step: SecAggStep) -> SecAggStep:
        """See Site."""
        action = stage.value.removeprefix("query.")
        facts = {"round": step.round, **_payload(step.payload)}
        return self._answer(
            call, action, facts, lambda site, _: site.secagg(stage, step), lambda reply: _payload(reply.payload)
        )

    def evaluate(self, call: Call, order: EvaluateOrder) -> dict[str, float]:
        """See Site."""
        facts = {"round": order.round, **_weight(order.adapter)}

        def work(site: Site, premises: SitePremises) -> dict[str, float]:
            check_hours(self.house.policy)
            return site.evaluate(order)

        return self._answer(call, "evaluate", facts, work, lambda metrics: {**_said(metrics), "metrics": metrics})

    def ledger(self, call: Call) -> LedgerSummary:
        """See Site."""
        return self._answer(call, "ledger", {}, lambda site, _: site.ledger(), _said)

    def dry_run(self, call: Call) -> tuple[str, ...]:
        """What speaks against the run; nothing is loaded, trained or spent."""
        with self._noted(call, "dry run", {}) as (note, _):
            if not self.house.policy.dry_run:
                raise SiteError("This site answers no dry runs: its owner can set dry-run=true.")
            definition = _definition(call)
            found = objections(self.house, definition, run=run_id(definition, call.run))
            note(_said(found))
            return found

    def _answer(
        self,
        call: Call,
        action: str,
        facts: dict[str, Any],
        work: Callable[[Site, SitePremises], T],
        left: Callable[[T], dict[str, Any]],
    ) -> T:
        """Checks, works, and notes what leaves; the caller gets the answer only after the line is on disk."""
        with self._noted(call, action, facts) as (note, whose):
            definition = _definition(call)
            whose["definition"] = definition.hash
            check_run(self.house, definition, run_id(definition, call.run))
            with self._turn(call, action, facts.get("round")):
                site, premises = self._site(call, definition)
                anchor(self.house.ledger, self._known)
                with watched(call.watch.check):
                    answer = work(site, premises)
                if action in _LOADING:
                    self.counts.base = definition.config.model.reference
            note(left(answer))
            return answer

    @contextmanager
    def _noted(self, call: Call, action: str, facts: dict[str, Any]) -> Iterator[tuple[Note, dict[str, Any]]]:
        """Notes what is asked, and what becomes of it: by the note that is made inside, or by the error that ends it.

        Yields the note and the facts that every further line repeats.
        """
        whose = {"coordinator": call.coordinator, "peer": call.peer, "run": call.run[:128], "action": action}
        options = hashlib.sha256(call.options.encode()).hexdigest()
        self.counts.asked += 1
        self.log.append("asked", **whose, options=options, bundle=call.bundle.hash, code=call.bundle.code, **facts)

        def note(what: dict[str, Any]) -> None:
            self._note("left", whose, {**{k: v for k, v in facts.items() if k in ("round", "pass")}, **what})
            self.counts.left_bytes += int(what.get("bytes", 0))

        try:
            yield note, whose
        except UmbelError as error:
            self.counts.refused += 1
            self._note("refused", whose, {"error": type(error).__name__, "reason": str(error)[:2000]})
            raise
        except Exception as error:
            self._note("failed", whose, {"error": type(error).__name__})
            raise

    def _note(self, kind: str, whose: dict[str, Any], facts: dict[str, Any]) -> None:
        """A line with what the call has cost, whatever became of it; nothing leaves on a ledger that is not trusted."""
        with self._books:
            try:
                now, fresh = anchor(self.house.ledger, self._known)
            except LedgerError:
                if kind == "left":
                    raise
                self.log.append(kind, **whose, **facts)
                return
            self.log.append(kind, **whose, **facts, cost=costs(fresh), ledger=now.record())
            self._known = now

    @contextmanager
    def _turn(self, call: Call, action: str, round_number: int | None) -> Iterator[None]:
        """One piece of work at a time: there is one base, and one store a run."""
        while not self._work.acquire(timeout=_SECONDS):
            call.watch.check(False)
        try:
            call.watch.check(False)
            self.counts.working = f"{action} of run {call.run} for {call.coordinator}"
            with about(run=call.run, round_number=round_number):
                yield
        finally:
            self.counts.working = ""
            self._work.release()

    def _site(self, call: Call, definition: RunDefinition) -> tuple[Site, SitePremises]:
        config = definition.config
        run = run_id(definition, call.run)
        key = (call.coordinator, run, definition.hash)
        if key not in self._sites:
            premises = SitePremises(self.house, config, call.coordinator, run)
            check_models(self.house.policy, config, premises.view)
            site = LocalSite(
                config,
                0,
                config.federation.clients,
                MemoryStore(),
                run=run,
                rank=site_rank(self.house.policy, config),
                premises=premises,
            )
            self._sites[key] = (self._wrap(site), premises)
            while len(self._sites) > _SITES:
                self._sites.popitem(last=False)
        self._sites.move_to_end(key)
        return self._sites[key]


def _definition(call: Call) -> RunDefinition:
    return RunDefinition(call.coordinator, read_options(call.options), call.bundle)


@lru_cache(maxsize=8)
def read_options(text: str) -> RunConfig:
    """A run's options from a JSON object with flat names.

    Raises:
        ConfigError: the text is no such object, or an option is unknown, mistyped or cannot be combined.
    """
    try:
        flat = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        flat = None
    if not isinstance(flat, dict) or not all(isinstance(value, bool | int | float | str) for value in flat.values()):
        raise ConfigError("A run's options are no JSON object of plain values: both ends must run the same umbel.")
    return RunConfig.from_flat(flat)


def _no_constant(name: str) -> float:
    raise ValueError(name)


def _weight(vector: np.ndarray[Any, Any]) -> dict[str, Any]:
    return _payload(np.ascontiguousarray(vector).tobytes())


def _update(reply: TrainReply) -> dict[str, Any]:
    """Update, metrics and layout in one hash: everything that leaves."""
    if not all(math.isfinite(value) for value in reply.metrics.values()):
        raise SiteError(
            "The round gave a loss that is no finite number, and nothing was sent: lower the learning rate."
        )
    rest = canonical_json({"metrics": reply.metrics, "spec_hash": reply.spec_hash})
    return {**_payload(np.ascontiguousarray(reply.update).tobytes() + rest), "metrics": reply.metrics}


def _payload(data: bytes) -> dict[str, Any]:
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _said(answer: object) -> dict[str, Any]:
    return _payload(repr(answer).encode())
