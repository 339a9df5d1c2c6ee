"""One message of secure aggregation of every kind."""

from __future__ import annotations

from privacy.secagg.messages import (
    CIPHERTEXT_BYTES,
    Advertisement,
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

CONTEXT = bytes(range(32))
HASH = b"h" * 32
ADVERT = Advertisement(7, b"e" * 32, b"m" * 32, b"s" * 64)
OTHER = Advertisement(8, b"E" * 32, b"M" * 32, b"S" * 64)
PAIRS = ((1, b"c" * CIPHERTEXT_BYTES), (2, b"d" * CIPHERTEXT_BYTES))
MESSAGES = [
    ADVERT,
    KeyList((ADVERT, OTHER)),
    Shares(7, HASH, b"k" * 32, b"s" * 64, PAIRS),
    Delivery(7, HASH, PAIRS),
    Masked(7, HASH, memoryview(b"payload!")),
    Survivors(HASH, (1, 2, 2**64 - 1)),
    Confirmation(7, b"s" * 64),
    Signatures((Confirmation(1, b"s" * 64), Confirmation(2, b"t" * 64))),
    Unmasking(7, ((1, Secret.SELF_MASK, b"a" * 34), (2, Secret.MASKING_KEY, b"b" * 34))),
]
