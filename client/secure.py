"""SecureRound: the site's side of secure aggregation, from the first message of a round to the last.

The state between two messages is sealed in the site's store, because under Flower each message may reach
another process; it is erased with the last message, or when a new attempt begins.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np

from client.outcome import RoundOutcome
from client.store import NodeStore
from privacy.plan import PrivacyPlan
from privacy.secagg import Identity, OnceGuard, Roster, RoundContext, SecAggClient
from privacy.secagg.agreement import agree, client_plan, round_context
from privacy.secagg.messages import Survivors
from privacy.terms import Sampler
from umbel.adapter import Vector
from umbel.config import RunConfig
from umbel.errors import ProtocolViolation, SecAggError, SiteError
from umbel.wire import MessageType, SecAggStep, read_secure_order

_STATE = "secagg"
_ORDER = "secagg-order"
_SUMMED = "secagg-summed"
_REVEALED = "secagg-revealed"


class SecureRound:
    """One site in one secure round.

    Args:
        config: the site's own view of the run.
        identity: of this site.
        roster: the identities that this site trusts.
        store: sealed, of this site.
        seal_key: 32 bytes of this machine.
        once: remembers across processes what was sent.
    """

    def __init__(
        self,
        config: RunConfig,
        identity: Identity,
        roster: Roster,
        store: NodeStore,
        seal_key: bytes,
        once: OnceGuard,
    ) -> None:
        self._config = config
        self._identity = identity
        self._roster = roster
        self._store = store
        self._seal_key = seal_key
        self._once = once

    def begin(self, order: bytes, round_number: int, sent: Vector, length: int, pass_number: int = 1) -> SecAggStep:
        """M0. Erases what is left of an earlier attempt.

        Args:
            order: what the coordinator says of the attempt (:func:`umbel.wire.secure_order`).
            round_number: 1-based.
            sent: what this site was sent (``TrainOrder.bound``).
            length: values of its upload.
            pass_number: which upload of the round is summed.

        Raises:
            SecAggError: the cohort is too small, or secure aggregation is off at this site.
        """
        if not self._config.secagg.enabled:
            raise SiteError("This site's run does not use secure aggregation: set secagg.enabled=true at both ends.")
        run, cohort, attempt = read_secure_order(order)
        parameters = agree(self._config, cohort, length)
        context = round_context(self._config, run, round_number, attempt, sent)
        client = SecAggClient(self._identity, self._roster, parameters, context, self._once)
        payload = client.advertise()
        body = {
            "run": run,
            "cohort": cohort,
            "attempt": attempt,
            "round": round_number,
            "length": length,
            "pass": pass_number,
            "broadcast": context.broadcast.hex(),
        }
        self._store.put(_ORDER, json.dumps(body).encode())
        self._store.put(_STATE, client.export(self._seal_key))
        return SecAggStep(round_number, payload)

    @property
    def pass_number(self) -> int:
        """Which upload of its round is being summed; 1 when none is."""
        head = self._store.get(_ORDER)
        return int(json.loads(head)["pass"]) if head is not None else 1

    def sum_plan(self, round_number: int) -> tuple[PrivacyPlan, str] | None:
        """What unmasking this round would release, and a key of this very attempt; None where no noise is in the sum.

        Nothing is claimed for how the coordinator drew the cohort: a site cannot see that.

        Raises:
            ProtocolViolation: there is no such round to unmask.
        """
        body = self._order(round_number)
        plan = client_plan(self._config, body["cohort"], body["length"])
        if plan is None:
            return None
        alone = replace(plan, sampler=Sampler.FULL, sampling_rate=1.0)
        return alone, f"{body['run']}/{round_number}/{body['attempt']}"

    def answer(self, stage: MessageType, step: SecAggStep, outcome: RoundOutcome | None) -> SecAggStep:
        """M1 to M4. A refused message changes nothing.

        Args:
            stage: which message.
            step: the coordinator's.
            outcome: the update to mask; needed for M2.

        Raises:
            ProtocolViolation: the message breaks the protocol, or there is no round to answer in.
        """
        client = self._restore(step.round)
        if stage is MessageType.SECAGG_SHARE:
            payload = client.share(step.payload)
        elif stage is MessageType.SECAGG_MASK:
            payload = self._mask(client, step.payload, outcome)
        elif stage is MessageType.SECAGG_CONFIRM:
            payload = self._confirm(client, step)
        elif stage is MessageType.SECAGG_UNMASK:
            payload = client.unmask(step.payload)
            self._remember_sum(step.round)
            self._store.delete(_STATE)
            self._store.delete(_ORDER)
            return SecAggStep(step.round, payload)
        else:
            raise ProtocolViolation(
                f"{stage.value} is no stage of secure aggregation: both ends must run the same umbel."
            )
        self._store.put(_STATE, client.export(self._seal_key))
        return SecAggStep(step.round, payload)

    def _confirm(self, client: SecAggClient, step: SecAggStep) -> bytes:
        """M3. All passes of a round sum the same clients: two sums that differ by one client would show its update."""
        summed = list(Survivors.from_bytes(step.payload, client.context).ids)
        if self.pass_number == 1:
            self._check_repeated(step.round, summed)
            payload = client.confirm(step.payload)
            self._store.put(_SUMMED, json.dumps({"round": step.round, "clients": summed}).encode())
            return payload
        before = self._store.get(_SUMMED)
        if before is None or json.loads(before) != {"round": step.round, "clients": summed}:
            raise ProtocolViolation(
                "The clients of this pass are not those of the round's first one, and the two sums would differ by "
                "single clients: the coordinator must leave the round out."
            )
        return client.confirm(step.payload)

    def _check_repeated(self, round_number: int, summed: list[int]) -> None:
        """A round whose sum may be known already is summed again over the very same clients, or not at all.

        The same updates go into both sums. Two sums over nearly the same clients differ by what a few sent, and
        several sums over very different clients can be combined to the same end, none of whose members sees more
        than two of them: only one set of clients is safe.
        """
        known = self._revealed().get(str(round_number))
        if known is not None and known != sorted(summed):
            apart = len(set(known).symmetric_difference(summed))
            raise ProtocolViolation(
                f"Round {round_number} was unmasked before over a cohort that differs by {apart} clients, and the two "
                "sums would tell about them: the coordinator must ask the same clients again, or leave the round out."
            )

    def _revealed(self) -> dict[str, list[int]]:
        """By round, the clients over which this site helped to unmask it. The store is one run's, whatever the
        coordinator calls it."""
        found = self._store.get(_REVEALED)
        known: dict[str, list[int]] = json.loads(found) if found is not None else {}
        return known

    def _remember_sum(self, round_number: int) -> None:
        """Kept before the shares leave: from then on the sum must be taken as known."""
        found = self._store.get(_SUMMED)
        summed = json.loads(found)["clients"] if found is not None else []
        known = self._revealed() | {str(round_number): sorted(summed)}
        self._store.put(_REVEALED, json.dumps(known).encode())

    def _mask(self, client: SecAggClient, ciphertexts: bytes, outcome: RoundOutcome | None) -> bytes:
        if outcome is None or outcome.update.dtype != np.float32:
            raise SecAggError("This site holds no update for the round: the coordinator must ask it to train first.")
        known = outcome.metrics
        seen = known.get("seen", 0.0)
        values = {"examples": known.get("examples", 0.0), "seen": seen, "loss": known.get("loss", 0.0) * seen}
        wanted = {item.name for item in client.parameters.encoding.coordinates}
        return client.mask(
            ciphertexts,
            np.asarray(outcome.update, dtype=np.float32),
            {name: value for name, value in values.items() if name in wanted},
            weight=known.get("examples", 0.0),
        )

    def _restore(self, round_number: int) -> SecAggClient:
        body, blob = self._order(round_number), self._store.get(_STATE)
        if blob is None:
            raise _no_round()
        parameters = agree(self._config, body["cohort"], body["length"])
        context = RoundContext(body["run"], round_number, body["attempt"], bytes.fromhex(body["broadcast"]))
        return SecAggClient.restore(blob, self._seal_key, self._identity, self._roster, parameters, context, self._once)

    def _order(self, round_number: int) -> dict[str, Any]:
        head = self._store.get(_ORDER)
        if head is None:
            raise _no_round()
        body: dict[str, Any] = json.loads(head)
        if body["round"] != round_number:
            raise ProtocolViolation(f"This site is in round {body['round']}, not {round_number}: a message is stale.")
        return body


def _no_round() -> ProtocolViolation:
    return ProtocolViolation("This site is in no secure round: the coordinator must begin with a train order.")
