"""The coordinator's half of the protocol: bytes in, bytes out, one accumulator however large the cohort."""

from __future__ import annotations

import hashlib
from collections.abc import Sized
from enum import IntEnum

from privacy.secagg import statements
from privacy.secagg.aggregate import Aggregate
from privacy.secagg.context import RoundContext
from privacy.secagg.graph import Graph
from privacy.secagg.identity import Roster
from privacy.secagg.keys import AgreementKey
from privacy.secagg.masking import Mask, apply_masks
from privacy.secagg.messages import (
    Advertisement,
    Bytes,
    Confirmation,
    Delivery,
    KeyList,
    Masked,
    Secret,
    Shares,
    Signatures,
    Survivors,
    Unmasking,
)
from privacy.secagg.parameters import SecAggParameters
from privacy.secagg.planes import add_packed
from privacy.secagg.reasons import Reason, violation
from privacy.secagg.recovery import recover
from umbel.errors import RoundAborted, SecAggError


class Phase(IntEnum):
    """What the coordinator is collecting."""

    ADVERTISEMENTS = 0
    SHARES = 1
    MASKED = 2
    CONFIRMATIONS = 3
    UNMASKINGS = 4
    FINISHED = 5


STAGES = ("advertised", "shared", "masked", "confirmed", "unmasked")
"""Names of the phases in reports: what a client had done when it answered."""


class SecAggCoordinator:
    """One round.

    ``receive_*`` returns True when a message was taken, False when it is a duplicate or late and was ignored, and
    raises ProtocolViolation when it is refused: the sender then counts as dropped and the round goes on. The
    messages of a phase may come in any order. Asking for the next message to send closes the phase before it.

    Args:
        parameters: of the round.
        context: of the round; after RoundAborted, repeat with a raised ``attempt``.
        roster: identities that the coordinator knows.
    """

    def __init__(self, parameters: SecAggParameters, context: RoundContext, roster: Roster) -> None:
        self.parameters = parameters
        self.context = context.digest(parameters)
        self.phase = Phase.ADVERTISEMENTS
        self.late = 0
        self._aborted = ""
        self._roster = roster
        self._advertised: dict[int, Advertisement] = {}
        self._public_keys: set[bytes] = set()
        self._list = self._survivors = self._signatures = b""
        self._list_hash = b""
        self._graph: Graph | None = None
        self._places: dict[int, int] = {}
        self._shared: dict[int, Shares] = {}
        self._inbox: dict[int, list[tuple[int, bytes]]] = {}
        self._masked: set[int] = set()
        self._sum = parameters.encoding.zeros()
        self._confirmed: dict[int, Confirmation] = {}
        self._unmasked: set[int] = set()
        self._revealed: dict[Secret, dict[int, dict[int, bytes]]] = {secret: {} for secret in Secret}
        self._bytes = dict.fromkeys(STAGES, 0)

    def receive_advertisement(self, sender: int, data: Bytes) -> bool:
        """M0 from ``sender`` (as the transport authenticated it)."""
        if self._ignored(sender, Phase.ADVERTISEMENTS, sender in self._advertised):
            return False
        message = Advertisement.from_bytes(data, self.context)
        self._same(sender, message.id)
        statement = statements.advertised(self.context, message.id, message.encryption, message.masking)
        if sender not in self._roster:
            raise violation(Reason.FOREIGN, f"Client {sender} is not in the coordinator's roster: enrol it first.")
        if not self._roster.verify(sender, statement, message.signature):
            raise violation(
                Reason.SIGNATURE,
                f"The keys of client {sender} are not signed for this context by its identity: refused.",
            )
        if len(self._advertised) >= self.parameters.n:
            raise violation(
                Reason.COHORT, f"Client {sender} is one more than the cohort of {self.parameters.n}: refused."
            )
        keys = {message.encryption, message.masking}
        if keys & self._public_keys or len(keys) < 2:
            raise violation(
                Reason.DUPLICATE, f"A public key of client {sender} is already in use: it must draw fresh ones."
            )
        self._advertised[sender] = message
        self._public_keys |= keys
        return self._count(Phase.ADVERTISEMENTS, data)

    def key_list(self) -> bytes:
        """M1, the same for all that advertised.

        Raises:
            RoundAborted: fewer than the minimum, or than the threshold.
        """
        if self._closes(Phase.ADVERTISEMENTS):
            self._enough(len(self._advertised), max(self.parameters.minimum, self.parameters.confirmations), "keys")
            listed = KeyList(tuple(self._advertised[id] for id in sorted(self._advertised)))
            self._list = listed.to_bytes(self.context)
            self._list_hash = hashlib.sha256(self._list).digest()
            self._graph = statements.graph_of(listed, self.parameters, self.context, self._list_hash)
            self._places = {id: place for place, id in enumerate(self._graph.members, start=1)}
        return self._list

    @property
    def listed(self) -> tuple[int, ...]:
        """Whom to send the key list: U1."""
        return self._ids(self._advertised)

    def receive_shares(self, sender: int, data: Bytes) -> bool:
        """M1's reply."""
        if self._ignored(sender, Phase.SHARES, sender in self._shared):
            return False
        message = Shares.from_bytes(data, self.context)
        self._same(sender, message.id)
        self._member(sender, self._advertised)
        self._same_list(message.list_hash, sender)
        statement = statements.committed(self.context, self._list_hash, sender, message.commitment)
        if not self._roster.verify(sender, statement, message.signature):
            raise violation(
                Reason.SIGNATURE, f"The commitment of client {sender} is not signed by its identity: refused."
            )
        assert self._graph is not None
        if tuple(receiver for receiver, _ in message.ciphertexts) != self._graph.neighbours(sender):
            raise violation(Reason.FOREIGN, f"Client {sender} did not share with exactly its neighbours: refused.")
        self._shared[sender] = message
        for receiver, sealed in message.ciphertexts:
            self._inbox.setdefault(receiver, []).append((sender, sealed))
        return self._count(Phase.SHARES, data)

    def close_shares(self) -> tuple[int, ...]:
        """Whom to send their shares and ask for masked vectors: U2, those who shared.

        Raises:
            RoundAborted: fewer than the minimum, or than the threshold, shared.
        """
        if self._closes(Phase.SHARES):
            self._enough(len(self._shared), max(self.parameters.minimum, self.parameters.confirmations), "shares")
        return self.sharing

    def shares_for(self, id: int) -> bytes:
        """M2 for ``id``, one of :meth:`close_shares`.

        Raises:
            RoundAborted: as :meth:`close_shares`.
        """
        self.close_shares()
        self._member(id, self._shared)
        inbox = sorted(self._inbox.get(id, []))
        return Delivery(id, self._list_hash, tuple(inbox)).to_bytes(self.context)

    @property
    def sharing(self) -> tuple[int, ...]:
        """Who shared: U2."""
        return self._ids(self._shared)

    def receive_masked(self, sender: int, data: Bytes) -> bool:
        """M2's reply: added to the one accumulator at once and then forgotten."""
        if self._ignored(sender, Phase.MASKED, sender in self._masked):
            return False
        message = Masked.from_bytes(data, self.context, self.parameters.encoding.wire_bytes)
        self._same(sender, message.id)
        self._member(sender, self._shared)
        self._same_list(message.list_hash, sender)
        add_packed(self._sum, message.payload, self.parameters.bits)
        self._masked.add(sender)
        return self._count(Phase.MASKED, data)

    def survivors_message(self) -> bytes:
        """M3, the same for all whose vectors arrived.

        Raises:
            RoundAborted: fewer than the minimum, or than the confirmations needed.
        """
        if self._closes(Phase.MASKED):
            self._enough(
                len(self._masked), max(self.parameters.minimum, self.parameters.confirmations), "masked vectors"
            )
            self._survivors = Survivors(self._list_hash, self.survivors).to_bytes(self.context)
        return self._survivors

    @property
    def survivors(self) -> tuple[int, ...]:
        """Whose masked vectors arrived: U3."""
        return self._ids(self._masked)

    def receive_confirmation(self, sender: int, data: Bytes) -> bool:
        """M3's reply."""
        if self._ignored(sender, Phase.CONFIRMATIONS, sender in self._confirmed):
            return False
        message = Confirmation.from_bytes(data, self.context)
        self._same(sender, message.id)
        self._member(sender, self._masked)
        statement = statements.confirmed(self.context, self._list_hash, self.survivors)
        if not self._roster.verify(sender, statement, message.signature):
            raise violation(Reason.SIGNATURE, f"Client {sender} confirmed another set of survivors: refused.")
        self._confirmed[sender] = message
        return self._count(Phase.CONFIRMATIONS, data)

    def signatures_message(self) -> bytes:
        """M4, the same for all that confirmed.

        Raises:
            RoundAborted: fewer confirmations than needed.
        """
        if self._closes(Phase.CONFIRMATIONS):
            self._enough(len(self._confirmed), self.parameters.confirmations, "confirmations")
            entries = tuple(self._confirmed[id] for id in self.confirming)
            self._signatures = Signatures(entries).to_bytes(self.context)
        return self._signatures

    @property
    def confirming(self) -> tuple[int, ...]:
        """Who confirmed the survivors."""
        return self._ids(self._confirmed)

    def receive_unmasking(self, sender: int, data: Bytes) -> bool:
        """M4's reply."""
        if self._ignored(sender, Phase.UNMASKINGS, sender in self._unmasked):
            return False
        message = Unmasking.from_bytes(data, self.context)
        self._same(sender, message.id)
        self._member(sender, self._confirmed)
        assert self._graph is not None
        holdings = [owner for owner in self._graph.holders(sender) if owner in self._shared]
        expected = [
            (owner, Secret.SELF_MASK if owner in self._masked else Secret.MASKING_KEY) for owner in sorted(holdings)
        ]
        if [(owner, secret) for owner, secret, _ in message.shares] != expected:
            raise violation(
                Reason.SHARE, f"Client {sender} did not reveal exactly the shares that were asked for: refused."
            )
        for owner, secret, share in message.shares:
            self._revealed[secret].setdefault(owner, {})[self._places[sender]] = share
        self._unmasked.add(sender)
        return self._count(Phase.UNMASKINGS, data)

    def finish(self) -> Aggregate:
        """Recovers the secrets, removes the masks and decodes the sum.

        Raises:
            RoundAborted: too few shares; what was revealed opens no input.
        """
        self._closes(Phase.UNMASKINGS)
        if self.phase != Phase.UNMASKINGS + 1 or self._sum.size == 0:
            raise SecAggError("The round is finished already: start a new one with a fresh context.")
        try:
            masks = self._left_masks()
        except RoundAborted as error:
            self._aborted, self._sum = str(error), self._sum[:0]
            raise
        apply_masks(self._sum, masks)
        total, metrics = self.parameters.encoding.decode(self._sum, len(self._masked), self.context)
        self._sum = self._sum[:0]
        answered: tuple[Sized, ...] = (self._advertised, self._shared, self._masked, self._confirmed, self._unmasked)
        counts = {stage: len(ids) for stage, ids in zip(STAGES, answered, strict=True)}
        return Aggregate(total, metrics, self.survivors, counts, dict(self._bytes), self.late, self.parameters)

    def _left_masks(self) -> list[Mask]:
        """The opposite of every mask in the sum: self masks of survivors, pair masks of the dropped."""
        threshold, context, list_hash = self.parameters.threshold, self.context, self._list_hash
        seeds = self._revealed[Secret.SELF_MASK]
        keys = self._revealed[Secret.MASKING_KEY]
        seed_of = recover(
            {id: seeds.get(id, {}) for id in self.survivors},
            threshold,
            lambda id, seed: statements.commitment(context, id, seed) == self._shared[id].commitment,
            "seed",
        )
        graph = self._graph
        assert graph is not None
        # A dropped client without surviving neighbours left no mask in the sum.
        dropped = {
            id: alive
            for id in self.sharing
            if id not in self._masked and (alive := [v for v in graph.neighbours(id) if v in self._masked])
        }
        key_of = recover(
            {id: keys.get(id, {}) for id in dropped},
            threshold,
            lambda id, key: AgreementKey(key).public == self._advertised[id].masking,
            "masking key",
        )
        masks = [statements.self_mask(seed, context, list_hash, id, -1) for id, seed in seed_of.items()]
        for id, alive in dropped.items():
            own = AgreementKey(key_of[id])
            # What a survivor added for the dropped one is the opposite of what that one would have added.
            masks += [statements.pair_mask(own, self._advertised[v].masking, context, list_hash, id, v) for v in alive]
        return masks

    def _ids(
        self, of: dict[int, Advertisement] | dict[int, Shares] | dict[int, Confirmation] | set[int]
    ) -> tuple[int, ...]:
        return tuple(sorted(of))

    def _ignored(self, sender: int, phase: Phase, seen: bool) -> bool:
        if self.phase < phase:
            raise violation(
                Reason.ORDER, f"Client {sender} answered {phase.name} while the round is at {self.phase.name}: refused."
            )
        if self.phase > phase and not seen:
            self.late += 1
        return seen or self.phase > phase

    def _closes(self, phase: Phase) -> bool:
        """Whether ``phase`` is closed by this call; raises when it has not begun."""
        if self._aborted:
            raise RoundAborted(self._aborted)
        if self.phase < phase:
            raise SecAggError(
                f"The round is at {self.phase.name}, {phase.name} has not begun: send the messages in order."
            )
        if self.phase > phase:
            return False
        self.phase = Phase(phase + 1)
        return True

    def _count(self, phase: Phase, data: Bytes) -> bool:
        self._bytes[STAGES[phase]] += len(data)
        return True

    def _same(self, sender: int, id: int) -> None:
        if sender != id:
            raise violation(Reason.FOREIGN, f"Client {sender} sent a message in the name of client {id}: refused.")

    def _member(
        self, id: int, of: dict[int, Advertisement] | dict[int, Shares] | dict[int, Confirmation] | set[int]
    ) -> None:
        if id not in of:
            raise violation(Reason.FOREIGN, f"Client {id} did not take part in the stage before: refused.")

    def _same_list(self, list_hash: bytes, sender: int) -> None:
        if list_hash != self._list_hash:
            raise violation(Reason.CONTEXT, f"Client {sender} answered another key list than it was sent: refused.")

    def _enough(self, got: int, needed: int, what: str) -> None:
        if got < needed:
            self.phase = Phase.FINISHED
            self._sum = self._sum[:0]
            self._aborted = (
                f"Only {got} clients sent their {what}, {needed} are needed: repeat the round with fresh keys, "
                "a longer secagg.stage-timeout or more clients."
            )
            raise RoundAborted(self._aborted)
