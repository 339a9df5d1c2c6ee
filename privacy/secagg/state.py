"""A client's round state between two messages, and its sealed form.

Under Flower each message may reach another process, so the state must travel; it leaves a process only
encrypted (AES-256-GCM) under a key of this machine, bound to the round's context and the client.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field
from enum import IntEnum

from privacy.secagg.keys import seal, unseal
from privacy.secagg.reasons import Reason, violation
from umbel.errors import SecAggError

SEAL_KEY_BYTES = 32


class Stage(IntEnum):
    """What a client has done so far."""

    NEW = 0
    ADVERTISED = 1
    SHARED = 2
    MASKED = 3
    CONFIRMED = 4
    DONE = 5


@dataclass
class ClientState:
    """Everything a client must remember; secrets as bytearrays, so that :meth:`erase` can overwrite them.

    Overwriting is best effort: Python and the cipher library may have made copies that only their
    collection frees.

    Attributes:
        stage: last step taken.
        encryption, masking: private X25519 keys, 32 bytes.
        seed: b_u, 32 bytes.
        key_list: the M1 message.
        shares: by sender, share of its seed and share of its masking key, concatenated.
        survivors: U3 as confirmed.
    """

    stage: Stage = Stage.NEW
    encryption: bytearray = field(default_factory=bytearray, repr=False)
    masking: bytearray = field(default_factory=bytearray, repr=False)
    seed: bytearray = field(default_factory=bytearray, repr=False)
    key_list: bytes = field(default=b"", repr=False)
    shares: dict[int, bytearray] = field(default_factory=dict, repr=False)
    survivors: tuple[int, ...] = ()

    def erase(self) -> None:
        """Overwrites and drops every secret; the round is over for this client."""
        for secret in (self.encryption, self.masking, self.seed, *self.shares.values()):
            secret[:] = bytes(len(secret))
        self.encryption, self.masking, self.seed = bytearray(), bytearray(), bytearray()
        self.shares, self.key_list, self.survivors = {}, b"", ()
        self.stage = Stage.DONE

    def export(self, seal_key: bytes, context: bytes, id: int) -> bytes:
        """The sealed state.

        Raises:
            SecAggError: the key is not 32 bytes long.
        """
        body = {
            "stage": int(self.stage),
            "encryption": _text(self.encryption),
            "masking": _text(self.masking),
            "seed": _text(self.seed),
            "key_list": _text(self.key_list),
            "shares": {str(id): _text(share) for id, share in self.shares.items()},
            "survivors": list(self.survivors),
        }
        return seal(_check(seal_key), json.dumps(body).encode(), _bound(context, id))

    @classmethod
    def restore(cls, blob: bytes, seal_key: bytes, context: bytes, id: int) -> ClientState:
        """Opens what :meth:`export` sealed.

        Raises:
            ProtocolViolation: altered, of another client or context, or sealed under another key.
        """
        plain = unseal(_check(seal_key), bytes(blob), _bound(context, id))
        if plain is None:
            raise violation(
                Reason.CONTEXT,
                "A sealed round state cannot be opened: it was altered, or belongs to another client, round or "
                "machine.",
            )
        body = json.loads(plain)
        return cls(
            Stage(body["stage"]),
            bytearray(_bytes(body["encryption"])),
            bytearray(_bytes(body["masking"])),
            bytearray(_bytes(body["seed"])),
            _bytes(body["key_list"]),
            {int(id): bytearray(_bytes(share)) for id, share in body["shares"].items()},
            tuple(body["survivors"]),
        )


def _check(seal_key: bytes) -> bytes:
    if len(seal_key) != SEAL_KEY_BYTES:
        raise SecAggError(f"The seal key is not {SEAL_KEY_BYTES} bytes long: draw one from the system's CSPRNG.")
    return seal_key


def _bound(context: bytes, id: int) -> bytes:
    return b"umbel-secagg/state" + context + id.to_bytes(8, "big")


def _text(value: bytes | bytearray) -> str:
    return base64.b64encode(value).decode()


def _bytes(text: str) -> bytes:
    return base64.b64decode(text)
