"""The messages M0 to M4 as bytes: fixed layouts, declared limits, nothing that could execute.

Every message starts with 2 bytes of magic, a version, a type and the 32 bytes of the round's context. Integers
are big-endian; ids are 8 bytes. Anything short, long, unsorted or unknown is a ProtocolViolation.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import Self

from privacy.secagg.context import CONTEXT_BYTES
from privacy.secagg.keys import NONCE_BYTES, TAG_BYTES
from privacy.secagg.parameters import MAX_COHORT
from privacy.secagg.reasons import Reason, violation
from privacy.secagg.shamir import SHARE_BYTES

MAGIC, VERSION = b"US", 1
ID, KEY, HASH, SIGNATURE = 8, 32, 32, 64
CIPHERTEXT_BYTES = NONCE_BYTES + 2 * SHARE_BYTES + TAG_BYTES
"""A sealed pair: a share of the self-mask seed, then one of the masking key."""
HEADER_BYTES = 4 + CONTEXT_BYTES

Bytes = bytes | bytearray | memoryview


class Kind(IntEnum):
    """Message types."""

    ADVERTISEMENT = 0
    KEY_LIST = 1
    SHARES = 2
    DELIVERY = 3
    MASKED = 4
    SURVIVORS = 5
    CONFIRMATION = 6
    SIGNATURES = 7
    UNMASKING = 8


class Secret(IntEnum):
    """Which secret of a client a revealed share belongs to."""

    SELF_MASK = 0
    MASKING_KEY = 1


class Reader:
    """Takes fields off a message of the expected type and context, and checks that nothing is left over.

    Raises:
        ProtocolViolation: malformed or oversized, or of another context.
    """

    def __init__(self, data: Bytes, kind: Kind, context: bytes, limit: int) -> None:
        self._data, self._place = memoryview(data).cast("B"), 0
        if len(self._data) > limit:
            raise violation(
                Reason.OVERSIZED, f"A {kind.name} message has {len(self._data)} bytes, the limit is {limit}: refused."
            )
        if bytes(self.take(4)) != MAGIC + bytes((VERSION, kind)):
            raise violation(
                Reason.MALFORMED, f"A message is no {kind.name} of protocol version {VERSION}: update both sides."
            )
        if bytes(self.take(CONTEXT_BYTES)) != context:
            raise violation(
                Reason.CONTEXT,
                f"A {kind.name} message belongs to another round, adapter or configuration: both sides must have the "
                "same broadcast and parameters.",
            )

    def take(self, count: int) -> memoryview:
        """The next ``count`` bytes."""
        piece = self._data[self._place : self._place + count]
        if len(piece) != count:
            raise violation(Reason.MALFORMED, "A message of the protocol is truncated: send it again whole.")
        self._place += count
        return piece

    def bytes(self, count: int) -> bytes:
        """The next ``count`` bytes, copied."""
        return bytes(self.take(count))

    def number(self, count: int = ID) -> int:
        """The next ``count`` bytes as an unsigned integer."""
        return int.from_bytes(self.take(count), "big")

    def count(self, entry: int) -> int:
        """A number of entries of ``entry`` bytes, which must fill the rest exactly."""
        entries = self.number(4)
        if entries > MAX_COHORT:
            raise violation(Reason.OVERSIZED, f"A message lists {entries} entries, the limit is {MAX_COHORT}: refused.")
        if entries * entry != len(self._data) - self._place:
            raise violation(Reason.MALFORMED, "A message of the protocol has the wrong length: send it again whole.")
        return entries

    def rest(self) -> memoryview:
        """All that is left."""
        return self.take(len(self._data) - self._place)

    def done(self) -> None:
        """Refuses trailing bytes."""
        if self._place != len(self._data):
            raise violation(Reason.MALFORMED, "A message of the protocol has trailing bytes: send it again whole.")


def _head(kind: Kind, context: bytes) -> bytes:
    return MAGIC + bytes((VERSION, kind)) + context


def _id(id: int) -> bytes:
    return id.to_bytes(ID, "big")


def _listed(entries: Iterable[bytes]) -> bytes:
    parts = list(entries)
    return len(parts).to_bytes(4, "big") + b"".join(parts)


def ascending(ids: Iterable[int]) -> None:
    """Refuses ids that are not strictly ascending: then none stands twice."""
    last = -1
    for id in ids:
        if id <= last:
            raise violation(Reason.DUPLICATE, f"Id {id} stands twice or out of order in a list: ids must ascend.")
        last = id


@dataclass(frozen=True, slots=True)
class Advertisement:
    """M0: one client's fresh public keys, signed with its identity over ctx, id and keys."""

    id: int
    encryption: bytes
    masking: bytes
    signature: bytes

    SIZE = ID + 2 * KEY + SIGNATURE

    def body(self) -> bytes:
        """Fixed-size bytes, without a header."""
        return _id(self.id) + self.encryption + self.masking + self.signature

    def to_bytes(self, context: bytes) -> bytes:
        """As sent by the client."""
        return _head(Kind.ADVERTISEMENT, context) + self.body()

    @classmethod
    def read(cls, reader: Reader) -> Self:
        """One entry."""
        return cls(reader.number(), reader.bytes(KEY), reader.bytes(KEY), reader.bytes(SIGNATURE))

    @classmethod
    def from_bytes(cls, data: Bytes, context: bytes) -> Self:
        """Raises ProtocolViolation."""
        reader = Reader(data, Kind.ADVERTISEMENT, context, HEADER_BYTES + cls.SIZE)
        found = cls.read(reader)
        reader.done()
        return found


@dataclass(frozen=True, slots=True)
class KeyList:
    """M1: all advertisements, ids ascending."""

    entries: tuple[Advertisement, ...]

    def to_bytes(self, context: bytes) -> bytes:
        """As sent to every client; T1 is the SHA-256 of these bytes."""
        return _head(Kind.KEY_LIST, context) + _listed(entry.body() for entry in self.entries)

    @classmethod
    def from_bytes(cls, data: Bytes, context: bytes) -> Self:
        """Raises ProtocolViolation."""
        limit = HEADER_BYTES + 4 + MAX_COHORT * Advertisement.SIZE
        reader = Reader(data, Kind.KEY_LIST, context, limit)
        entries = tuple(Advertisement.read(reader) for _ in range(reader.count(Advertisement.SIZE)))
        ascending(entry.id for entry in entries)
        return cls(entries)


@dataclass(frozen=True, slots=True)
class Shares:
    """M1's reply: a signed commitment to the self-mask seed, and one sealed pair of shares a neighbour."""

    id: int
    list_hash: bytes
    commitment: bytes
    signature: bytes
    ciphertexts: tuple[tuple[int, bytes], ...]

    def to_bytes(self, context: bytes) -> bytes:
        """As sent by the client."""
        entries = _listed(_id(receiver) + sealed for receiver, sealed in self.ciphertexts)
        fixed = _id(self.id) + self.list_hash + self.commitment + self.signature
        return _head(Kind.SHARES, context) + fixed + entries

    @classmethod
    def from_bytes(cls, data: Bytes, context: bytes) -> Self:
        """Raises ProtocolViolation."""
        entry = ID + CIPHERTEXT_BYTES
        limit = HEADER_BYTES + ID + 2 * HASH + SIGNATURE + 4 + MAX_COHORT * entry
        reader = Reader(data, Kind.SHARES, context, limit)
        id, list_hash, commitment = reader.number(), reader.bytes(HASH), reader.bytes(HASH)
        signature = reader.bytes(SIGNATURE)
        entries = tuple((reader.number(), reader.bytes(CIPHERTEXT_BYTES)) for _ in range(reader.count(entry)))
        ascending(receiver for receiver, _ in entries)
        return cls(id, list_hash, commitment, signature, entries)


@dataclass(frozen=True, slots=True)
class Delivery:
    """M2: the sealed pairs meant for one client, senders ascending."""

    receiver: int
    list_hash: bytes
    ciphertexts: tuple[tuple[int, bytes], ...]

    def to_bytes(self, context: bytes) -> bytes:
        """As sent to the receiver."""
        entries = _listed(_id(sender) + sealed for sender, sealed in self.ciphertexts)
        return _head(Kind.DELIVERY, context) + _id(self.receiver) + self.list_hash + entries

    @classmethod
    def from_bytes(cls, data: Bytes, context: bytes) -> Self:
        """Raises ProtocolViolation."""
        entry = ID + CIPHERTEXT_BYTES
        reader = Reader(data, Kind.DELIVERY, context, HEADER_BYTES + ID + HASH + 4 + MAX_COHORT * entry)
        receiver, list_hash = reader.number(), reader.bytes(HASH)
        entries = tuple((reader.number(), reader.bytes(CIPHERTEXT_BYTES)) for _ in range(reader.count(entry)))
        ascending(sender for sender, _ in entries)
        return cls(receiver, list_hash, entries)


@dataclass(frozen=True, slots=True)
class Masked:
    """M2's reply: the masked vector, packed. Nothing else about the client."""

    id: int
    list_hash: bytes
    payload: memoryview

    OVERHEAD = HEADER_BYTES + ID + HASH

    def to_bytes(self, context: bytes) -> bytes:
        """As sent by the client (one copy of the payload)."""
        return b"".join((_head(Kind.MASKED, context), _id(self.id), self.list_hash, self.payload))

    @classmethod
    def from_bytes(cls, data: Bytes, context: bytes, payload_bytes: int) -> Self:
        """The payload stays a view of ``data``. Raises ProtocolViolation."""
        reader = Reader(data, Kind.MASKED, context, cls.OVERHEAD + payload_bytes)
        id, list_hash, payload = reader.number(), reader.bytes(HASH), reader.take(payload_bytes)
        return cls(id, list_hash, payload)


@dataclass(frozen=True, slots=True)
class Survivors:
    """M3: U3, the ids whose masked vectors arrived, ascending."""

    list_hash: bytes
    ids: tuple[int, ...]

    def to_bytes(self, context: bytes) -> bytes:
        """As sent to every survivor."""
        return _head(Kind.SURVIVORS, context) + self.list_hash + _listed(_id(id) for id in self.ids)

    @classmethod
    def from_bytes(cls, data: Bytes, context: bytes) -> Self:
        """Raises ProtocolViolation."""
        reader = Reader(data, Kind.SURVIVORS, context, HEADER_BYTES + HASH + 4 + MAX_COHORT * ID)
        list_hash = reader.bytes(HASH)
        ids = tuple(reader.number() for _ in range(reader.count(ID)))
        ascending(ids)
        return cls(list_hash, ids)


@dataclass(frozen=True, slots=True)
class Confirmation:
    """M3's reply: a signature over ctx, T1 and U3."""

    id: int
    signature: bytes

    SIZE = ID + SIGNATURE

    def body(self) -> bytes:
        """Fixed-size bytes, without a header."""
        return _id(self.id) + self.signature

    def to_bytes(self, context: bytes) -> bytes:
        """As sent by the client."""
        return _head(Kind.CONFIRMATION, context) + self.body()

    @classmethod
    def from_bytes(cls, data: Bytes, context: bytes) -> Self:
        """Raises ProtocolViolation."""
        reader = Reader(data, Kind.CONFIRMATION, context, HEADER_BYTES + cls.SIZE)
        found = cls(reader.number(), reader.bytes(SIGNATURE))
        reader.done()
        return found


@dataclass(frozen=True, slots=True)
class Signatures:
    """M4: confirmations of the same U3, ids ascending."""

    entries: tuple[Confirmation, ...]

    def to_bytes(self, context: bytes) -> bytes:
        """As sent to every confirmed survivor."""
        return _head(Kind.SIGNATURES, context) + _listed(entry.body() for entry in self.entries)

    @classmethod
    def from_bytes(cls, data: Bytes, context: bytes) -> Self:
        """Raises ProtocolViolation."""
        reader = Reader(data, Kind.SIGNATURES, context, HEADER_BYTES + 4 + MAX_COHORT * Confirmation.SIZE)
        count = reader.count(Confirmation.SIZE)
        entries = tuple(Confirmation(reader.number(), reader.bytes(SIGNATURE)) for _ in range(count))
        ascending(entry.id for entry in entries)
        return cls(entries)


@dataclass(frozen=True, slots=True)
class Unmasking:
    """M4's reply: one share for each owner, of the self-mask seed or of the masking key, never both."""

    id: int
    shares: tuple[tuple[int, Secret, bytes], ...]

    def to_bytes(self, context: bytes) -> bytes:
        """As sent by the client."""
        entries = _listed(_id(owner) + bytes((secret,)) + share for owner, secret, share in self.shares)
        return _head(Kind.UNMASKING, context) + _id(self.id) + entries

    @classmethod
    def from_bytes(cls, data: Bytes, context: bytes) -> Self:
        """Raises ProtocolViolation."""
        entry = ID + 1 + SHARE_BYTES
        reader = Reader(data, Kind.UNMASKING, context, HEADER_BYTES + ID + 4 + MAX_COHORT * entry)
        id, shares = reader.number(), []
        for _ in range(reader.count(entry)):
            owner, secret = reader.number(), reader.number(1)
            if secret > Secret.MASKING_KEY:
                raise violation(Reason.MALFORMED, "A revealed share is of an unknown secret: update both sides.")
            shares.append((owner, Secret(secret), reader.bytes(SHARE_BYTES)))
        ascending(owner for owner, _, _ in shares)
        return cls(id, tuple(shares))
