"""The clock of a machine that starts a federation: there is no coordinator yet to compare it with, so it asks NTP."""

from __future__ import annotations

import socket
import struct
import time

from deploy.preflight.network import SKEW
from umbel.errors import DeployError

_PORT = 123
_TIMEOUT = 5.0
_EPOCH = 2_208_988_800  # seconds from 1900, where NTP counts from, to 1970
_ASK = bytes([0b00_100_011]) + bytes(47)  # version 4, client (RFC 4330)


def check_time_server(address: str) -> str:
    """How far this clock is from that of a time server, ``HOST`` or ``HOST:PORT``.

    Raises:
        DeployError: the server does not answer or does not know the time, or the clocks differ by more than nodes may.
    """
    host, _, port = address.rpartition(":") if address.rpartition(":")[2].isdigit() else (address, "", str(_PORT))
    try:
        with socket.socket(socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_DGRAM)[0][0], 2) as stream:
            stream.settimeout(_TIMEOUT)
            stream.connect((host.strip("[]"), int(port)))
            asked = time.time()
            stream.send(_ASK)
            answer = stream.recv(512)
            heard = time.time()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise DeployError(
            f"The time server {address} does not answer ({reason}): name one that this machine keeps its clock by."
        ) from None
    if len(answer) < len(_ASK) or answer[0] & 7 != 4 or not 1 <= answer[1] <= 15:
        raise DeployError(f"{address} tells no time: name a time server whose own clock is set.")
    seconds, fraction = struct.unpack_from("!II", answer, 40)
    # Half of the way there and back is nobody's error; it is far less than the skew that matters.
    apart = abs(seconds + fraction / 2**32 - _EPOCH - (asked + heard) / 2)
    if apart > SKEW:
        raise DeployError(
            f"This clock and that of {address} differ by {apart:.0f} s, and nodes whose clocks differ by more than "
            f"{SKEW:g} s are not let in: set this one by NTP."
        )
    return f"{apart:.1f} s from {address}"
