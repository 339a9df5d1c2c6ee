"""What is signed, hashed and derived in a round: one place, so that client and coordinator cannot drift apart."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from privacy.secagg.graph import Graph
from privacy.secagg.keys import AgreementKey, derive
from privacy.secagg.masking import MASK_SEED_BYTES, Mask
from privacy.secagg.messages import KeyList
from privacy.secagg.parameters import SecAggParameters


def _id(id: int) -> bytes:
    return id.to_bytes(8, "big")


def advertised(context: bytes, id: int, encryption: bytes, masking: bytes) -> bytes:
    """M0: what a client signs."""
    return b"umbel-secagg/advertise" + context + _id(id) + encryption + masking


def committed(context: bytes, list_hash: bytes, id: int, commitment: bytes) -> bytes:
    """M1: what a client signs."""
    return b"umbel-secagg/commit" + context + list_hash + _id(id) + commitment


def confirmed(context: bytes, list_hash: bytes, survivors: Sequence[int]) -> bytes:
    """M3: what every survivor signs; the same bytes for all."""
    ids = hashlib.sha256(b"".join(_id(id) for id in survivors)).digest()
    return b"umbel-secagg/confirm" + hashlib.sha256(context + list_hash + ids).digest()


def commitment(context: bytes, id: int, seed: bytes) -> bytes:
    """H(b_u): hiding because the seed is 32 random bytes."""
    return hashlib.sha256(b"umbel-secagg/seed" + context + _id(id) + seed).digest()


def graph_of(key_list: KeyList, parameters: SecAggParameters, context: bytes, list_hash: bytes) -> Graph:
    """The neighbourhoods that a key list fixes.

    The list holds everybody's fresh keys, so its hash could not be foreseen when keys were drawn.
    """
    members = [entry.id for entry in key_list.entries]
    k = len(members) - 1 if parameters.mode == "complete" else parameters.k
    return Graph(members, k, context + list_hash)


def channel_key(
    own: AgreementKey, public: bytes, context: bytes, list_hash: bytes, sender: int, receiver: int
) -> bytes:
    """AES-256 key for the shares that ``sender`` sends ``receiver``."""
    return derive(own.shared(public), context, "shares", list_hash, _id(sender), _id(receiver))


def channel_bound(context: bytes, list_hash: bytes, sender: int, receiver: int) -> bytes:
    """What authenticates that ciphertext beside its key."""
    return context + list_hash + _id(sender) + _id(receiver)


def self_mask(seed: bytes, context: bytes, list_hash: bytes, id: int, sign: int) -> Mask:
    """PRG(b_u)."""
    return Mask(derive(seed, context, "self mask", list_hash, _id(id), size=MASK_SEED_BYTES), sign)


def pair_mask(own: AgreementKey, public: bytes, context: bytes, list_hash: bytes, id: int, other: int) -> Mask:
    """What client ``id`` adds for its neighbour ``other``; the neighbour's is the opposite."""
    low, high = sorted((id, other))
    seed = derive(own.shared(public), context, "pair mask", list_hash, _id(low), _id(high), size=MASK_SEED_BYTES)
    return Mask(seed, 1 if id < other else -1)
