"""The client's half of the protocol: bytes in, bytes out, one step after the other.

Bonawitz et al. 2017 (malicious variant with the consistency round) on the graph of Bell et al. 2020.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping

from privacy.secagg import shamir, statements
from privacy.secagg.context import RoundContext
from privacy.secagg.graph import Graph
from privacy.secagg.identity import Identity, Roster
from privacy.secagg.keys import AgreementKey, seal, unseal
from privacy.secagg.masking import apply_masks
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
from privacy.secagg.once import MemoryGuard, OnceGuard
from privacy.secagg.parameters import SecAggParameters
from privacy.secagg.planes import pack
from privacy.secagg.reasons import Reason, violation
from privacy.secagg.shamir import SHARE_BYTES
from privacy.secagg.state import ClientState, Stage
from umbel.adapter import Vector

_NO_METRICS: Mapping[str, float] = {}


class SecAggClient:
    """One client in one round.

    Each step may be taken once and in order: ``advertise``, ``share``, ``mask``, ``confirm``, ``unmask``. A refused
    message changes nothing and reveals nothing; the client may be given the right one, or simply stop. After
    ``unmask`` every secret of the round is erased. ``abandon`` does the same at any time.

    Args:
        identity: this site's identity.
        roster: the keys that this site trusts.
        parameters: of the round; the site compares ``minimum`` and ``corrupt`` with its own policy before.
        context: computed from what this client itself received.
        once: remembers what was sent across processes; in one process memory is enough.
    """

    def __init__(
        self,
        identity: Identity,
        roster: Roster,
        parameters: SecAggParameters,
        context: RoundContext,
        once: OnceGuard | None = None,
    ) -> None:
        self.id = identity.id
        self.parameters = parameters
        self.context = context.digest(parameters)
        self._identity, self._roster = identity, roster
        self._once = once if once is not None else MemoryGuard()
        self._state = ClientState()
        self._keys: tuple[AgreementKey, AgreementKey] | None = None
        self._view: tuple[dict[int, Advertisement], bytes, Graph] | None = None

    @property
    def stage(self) -> Stage:
        """The last step taken."""
        return self._state.stage

    def advertise(self) -> bytes:
        """M0: draws two fresh X25519 keys and signs them."""
        self._expect(Stage.NEW)
        self._claim("advertise")
        encryption, masking = AgreementKey(), AgreementKey()
        self._keys = encryption, masking
        self._state.encryption, self._state.masking = bytearray(encryption.private), bytearray(masking.private)
        self._state.stage = Stage.ADVERTISED
        return self._advertisement().to_bytes(self.context)

    def share(self, list_message: Bytes) -> bytes:
        """M1: checks the key list and shares the seed and the masking key among the neighbours.

        Raises:
            ProtocolViolation: the list is malformed or of another context, too small or too large, holds an unknown
                member, a bad signature, a key twice, or not this client's own entry.
        """
        self._expect(Stage.ADVERTISED)
        raw = bytes(list_message)
        entries, list_hash, graph = self._check_list(raw)
        encryption, masking = self._agreement()
        seed, holders = secrets.token_bytes(32), graph.holders(self.id)
        # A neighbour's key of low order is refused here, before anything was sent.
        channels = {
            other: statements.channel_key(
                encryption, entries[other].encryption, self.context, list_hash, self.id, other
            )
            for other in holders
            if other != self.id
        }
        places = {id: place for place, id in enumerate(graph.members, start=1)}
        points = [places[id] for id in holders]
        of_seed, of_key = shamir.split([seed, masking.private], points, self.parameters.threshold)
        ciphertexts = []
        for other, first, second in zip(holders, of_seed, of_key, strict=True):
            if other == self.id:
                self._state.shares[other] = bytearray(first + second)
                continue
            bound = statements.channel_bound(self.context, list_hash, self.id, other)
            ciphertexts.append((other, seal(channels[other], first + second, bound)))
        self._claim("share")
        commitment = statements.commitment(self.context, self.id, seed)
        signature = self._identity.sign(statements.committed(self.context, list_hash, self.id, commitment))
        self._state.seed, self._state.key_list, self._state.stage = bytearray(seed), raw, Stage.SHARED
        return Shares(self.id, list_hash, commitment, signature, tuple(ciphertexts)).to_bytes(self.context)

    def mask(
        self,
        ciphertexts: Bytes,
        values: Vector,
        metrics: Mapping[str, float] = _NO_METRICS,
        weight: float = 1.0,
    ) -> bytes:
        """M2: opens the shares meant for this client, then sends the masked vector: once per context, ever.

        Args:
            ciphertexts: what the coordinator delivered.
            values: float32, ``parameters.length`` finite values.
            metrics: one number for each coordinate of the encoding.
            weight: example count, where the encoding is weighted.

        Raises:
            ProtocolViolation: a pair of shares was altered or comes from a stranger, or fewer than the threshold came.
            SecAggError: the vector or the metrics do not fit the encoding; nothing was sent.
        """
        self._expect(Stage.SHARED)
        entries, list_hash, graph = self._checked_view()
        delivery = Delivery.from_bytes(ciphertexts, self.context)
        if delivery.receiver != self.id:
            raise violation(Reason.FOREIGN, f"Shares for client {delivery.receiver} reached client {self.id}: refused.")
        self._check_hash(delivery.list_hash, list_hash)
        opened = self._open(delivery, entries, list_hash, graph)
        held = len(opened) + (self.id in self._state.shares)
        if held < self.parameters.threshold:
            raise violation(
                Reason.COHORT,
                f"Only {held} clients shared with client {self.id}, it needs {self.parameters.threshold}: "
                "repeat the round with more clients.",
            )
        words = self.parameters.encoding.encode(values, metrics, weight, self.context)
        _, masking = self._agreement()
        masks = [statements.self_mask(bytes(self._state.seed), self.context, list_hash, self.id, 1)]
        masks += [
            statements.pair_mask(masking, entries[other].masking, self.context, list_hash, self.id, other)
            for other in opened
        ]
        self._claim("mask")
        self._state.shares.update(opened)
        self._state.stage = Stage.MASKED
        apply_masks(words, masks)
        payload = pack(words, self.parameters.bits)
        return Masked(self.id, list_hash, payload.data).to_bytes(self.context)

    def confirm(self, survivors: Bytes) -> bytes:
        """M3: checks the set of survivors and signs it: one set per context, ever.

        Raises:
            ProtocolViolation: the set holds somebody who did not share, lacks this client, or is too small.
        """
        self._expect(Stage.MASKED)
        entries, list_hash, graph = self._checked_view()
        message = Survivors.from_bytes(survivors, self.context)
        self._check_hash(message.list_hash, list_hash)
        alive, shared = set(message.ids), set(self._state.shares) | {self.id}
        strangers = alive - set(entries) | (alive & set(graph.neighbours(self.id))) - shared
        if strangers:
            raise violation(
                Reason.SURVIVORS, f"Survivor {min(strangers)} never shared its secrets: the set cannot be confirmed."
            )
        if self.id not in alive:
            raise violation(
                Reason.SURVIVORS, f"Client {self.id} is not among the survivors that it was asked to confirm: refused."
            )
        holders = alive & set(graph.holders(self.id))
        if len(alive) < self.parameters.minimum or len(holders) < self.parameters.threshold:
            raise violation(
                Reason.COHORT,
                f"{len(alive)} survivors, {len(holders)} of them holding shares, are fewer than the minimum of "
                f"{self.parameters.minimum} and the threshold of {self.parameters.threshold}: repeat the round.",
            )
        self._claim("confirm")
        self._state.survivors, self._state.stage = message.ids, Stage.CONFIRMED
        signature = self._identity.sign(statements.confirmed(self.context, list_hash, message.ids))
        return Confirmation(self.id, signature).to_bytes(self.context)

    def unmask(self, signatures: Bytes) -> bytes:
        """M4: checks the confirmations, then reveals one share for each owner and erases every secret.

        For a survivor the share of its seed, for a client that dropped after sharing the share of its masking key.

        Raises:
            ProtocolViolation: fewer valid confirmations than needed, or one that is not of this set.
        """
        self._expect(Stage.CONFIRMED)
        _, list_hash, _ = self._checked_view()
        message = Signatures.from_bytes(signatures, self.context)
        alive, statement = (
            set(self._state.survivors),
            statements.confirmed(self.context, list_hash, self._state.survivors),
        )
        if len(message.entries) < self.parameters.confirmations:
            raise violation(
                Reason.COHORT,
                f"{len(message.entries)} survivors confirmed, {self.parameters.confirmations} are needed: "
                "repeat the round.",
            )
        for entry in message.entries:
            if entry.id not in alive:
                raise violation(Reason.FOREIGN, f"Client {entry.id} confirmed but is no survivor: refused.")
            if not self._roster.verify(entry.id, statement, entry.signature):
                raise violation(
                    Reason.SIGNATURE,
                    f"Client {entry.id} did not confirm the survivors that client {self.id} was shown: refused.",
                )
        self._claim("unmask")
        revealed = []
        for owner, pair in sorted(self._state.shares.items()):
            if owner in alive:
                revealed.append((owner, Secret.SELF_MASK, bytes(pair[:SHARE_BYTES])))
            else:
                revealed.append((owner, Secret.MASKING_KEY, bytes(pair[SHARE_BYTES:])))
        self.abandon()
        return Unmasking(self.id, tuple(revealed)).to_bytes(self.context)

    def abandon(self) -> None:
        """Erases every secret; no further step is possible."""
        self._state.erase()
        self._keys = self._view = None

    def export(self, seal_key: bytes) -> bytes:
        """The state, sealed under a 32-byte key of this machine, for :meth:`restore` in another process."""
        return self._state.export(seal_key, self.context, self.id)

    @classmethod
    def restore(
        cls,
        blob: bytes,
        seal_key: bytes,
        identity: Identity,
        roster: Roster,
        parameters: SecAggParameters,
        context: RoundContext,
        once: OnceGuard | None = None,
    ) -> SecAggClient:
        """The client that :meth:`export` sealed. Give the same lasting ``once`` to every process.

        Raises:
            ProtocolViolation: the blob was altered, or is of another client, context or machine.
        """
        client = cls(identity, roster, parameters, context, once)
        client._state = ClientState.restore(blob, seal_key, client.context, client.id)
        return client

    def _expect(self, stage: Stage) -> None:
        if self._state.stage != stage:
            reason = Reason.REPEATED if self._state.stage > stage else Reason.ORDER
            raise violation(
                reason,
                f"Client {self.id} is at stage {self._state.stage.name} and was asked for the step after {stage.name}: "
                "each step is taken once, in order.",
            )

    def _claim(self, step: str) -> None:
        if not self._once.claim(self.context, self.id, step):
            raise violation(
                Reason.REPEATED,
                f"Client {self.id} already took the step {step!r} in this context: "
                "repeat the round with a new attempt.",
            )

    def _agreement(self) -> tuple[AgreementKey, AgreementKey]:
        if self._keys is None:
            self._keys = AgreementKey(bytes(self._state.encryption)), AgreementKey(bytes(self._state.masking))
        return self._keys

    def _advertisement(self) -> Advertisement:
        encryption, masking = (key.public for key in self._agreement())
        signature = self._identity.sign(statements.advertised(self.context, self.id, encryption, masking))
        return Advertisement(self.id, encryption, masking, signature)

    def _check_list(self, raw: bytes) -> tuple[dict[int, Advertisement], bytes, Graph]:
        listed = KeyList.from_bytes(raw, self.context)
        entries = {entry.id: entry for entry in listed.entries}
        if not self.parameters.minimum <= len(entries) <= self.parameters.n:
            raise violation(
                Reason.COHORT,
                f"The key list has {len(entries)} members, client {self.id} takes part with "
                f"{self.parameters.minimum} to {self.parameters.n}: repeat the round with another cohort.",
            )
        if entries.get(self.id) != self._advertisement():
            raise violation(
                Reason.KEY, f"The key list does not hold the entry that client {self.id} sent: somebody changed it."
            )
        keys = [key for entry in listed.entries for key in (entry.encryption, entry.masking)]
        if len(set(keys)) != len(keys):
            raise violation(Reason.DUPLICATE, "A public key stands twice in the key list: every client draws its own.")
        for entry in listed.entries:
            if entry.id not in self._roster:
                raise violation(
                    Reason.FOREIGN,
                    f"Client {entry.id} is not in the roster of client {self.id}: enrol it or leave it out.",
                )
            statement = statements.advertised(self.context, entry.id, entry.encryption, entry.masking)
            if not self._roster.verify(entry.id, statement, entry.signature):
                raise violation(
                    Reason.SIGNATURE,
                    f"The keys of client {entry.id} are not signed for this context: it has other parameters, another "
                    "broadcast, or is not who it claims to be.",
                )
        self._view = self._make_view(raw, listed)
        return self._view

    def _make_view(self, raw: bytes, listed: KeyList) -> tuple[dict[int, Advertisement], bytes, Graph]:
        list_hash = hashlib.sha256(raw).digest()
        graph = statements.graph_of(listed, self.parameters, self.context, list_hash)
        return {entry.id: entry for entry in listed.entries}, list_hash, graph

    def _checked_view(self) -> tuple[dict[int, Advertisement], bytes, Graph]:
        """The list that ``share`` checked; a restored client rebuilds it from its sealed state."""
        if self._view is None:
            raw = self._state.key_list
            self._view = self._make_view(raw, KeyList.from_bytes(raw, self.context))
        return self._view

    def _check_hash(self, got: bytes, expected: bytes) -> None:
        if got != expected:
            raise violation(
                Reason.CONTEXT, f"A message to client {self.id} is about another key list than it was shown: refused."
            )

    def _open(
        self, delivery: Delivery, entries: dict[int, Advertisement], list_hash: bytes, graph: Graph
    ) -> dict[int, bytearray]:
        encryption, _ = self._agreement()
        neighbours, opened = set(graph.neighbours(self.id)), {}
        for sender, sealed in delivery.ciphertexts:
            if sender not in neighbours:
                raise violation(Reason.FOREIGN, f"Client {sender} is no neighbour of client {self.id}: shares refused.")
            public = entries[sender].encryption
            key = statements.channel_key(encryption, public, self.context, list_hash, sender, self.id)
            plain = unseal(key, sealed, statements.channel_bound(self.context, list_hash, sender, self.id))
            if plain is None:
                raise violation(
                    Reason.CIPHERTEXT,
                    f"The shares from client {sender} to client {self.id} were altered or moved: refused.",
                )
            opened[sender] = bytearray(plain)
        return opened
