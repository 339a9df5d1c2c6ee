"""Checks of what is between machines: certificates, keys, reachability, clocks, and what the proxy lets through."""

from __future__ import annotations

import http.client
import socket
import ssl
import time
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key

from umbel.errors import DeployError
from umbel.tls import load_identity, read_private, split_address

SKEW = 5.0
"""Seconds by which two clocks may differ: Flower refuses a node whose signed time lies further in the future."""
CONTROL = "/v1/control/list-runs"
FLEET = "/v1/fleet/pull-messages"
_SOON = 3.0  # days
_TIMEOUT = 10.0


def check_identity(folder: Path) -> str:
    """The certificate in ``folder`` is whole, current, unrevoked, of its authority, and has days left.

    Raises:
        DeployError: it is not, or ends within three days.
    """
    peer = load_identity(folder).peer
    left = (peer.not_after - datetime.now(UTC)).total_seconds() / 86400
    if left < _SOON:
        raise DeployError(
            f"The certificate in {folder} ends in {left:.1f} days: renew it with 'umbel provision renew' now."
        )
    return f"{peer.name} ({peer.role or 'no role'}), {left:.0f} days left"


def check_node_key(path: Path) -> str:
    """``path`` is the SuperNode's private key as Flower wants it: ECDSA P-384 in OpenSSH format, closed to others.

    Raises:
        DeployError: it is something else.
    """
    data = read_private(path)
    try:
        key = load_ssh_private_key(data, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise DeployError(
            f"{path} is no OpenSSH private key without a passphrase: make one with ssh-keygen -t ecdsa -b 384 -N ''."
        ) from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP384R1):
        raise DeployError(f"{path} is no ECDSA P-384 key: make one with ssh-keygen -t ecdsa -b 384 -N ''.")
    return "ECDSA P-384"


def check_reachable(address: str, ca: Path) -> str:
    """The coordinator's proxy answers over TLS with a certificate of ``ca``, and serves the fleet's interface.

    Raises:
        DeployError: it cannot be reached, its certificate is not to be trusted, or it is no proxy of a SuperLink.
    """
    status, _, seconds = _post(address, ca, FLEET)
    if status == http.client.NOT_FOUND or status >= http.client.INTERNAL_SERVER_ERROR:
        raise DeployError(
            f"{address} answers {status} to the fleet's interface: give the address for sites, and have the "
            "coordinator look whether its SuperLink runs behind the proxy."
        )
    return f"{address} in {1000 * seconds:.0f} ms"


def check_closed(address: str, ca: Path) -> str:
    """What sites can reach is not the operator's: the control interface, which knows no login, must not answer.

    Raises:
        DeployError: it answers with anything but a refusal by the proxy, or ``address`` cannot be reached.
    """
    status, _, _ = _post(address, ca, CONTROL)
    if status not in (http.client.FORBIDDEN, http.client.NOT_FOUND):
        raise DeployError(
            f"{address} answers {status} on {CONTROL}: whoever reaches it can start runs and register nodes, so let "
            "the proxy expose /v1/fleet/ alone to sites."
        )
    return f"{CONTROL} is refused with {status}"


def check_clock(address: str, ca: Path) -> str:
    """This machine's clock agrees with the coordinator's to five seconds.

    Raises:
        DeployError: it does not, the coordinator tells no time, or ``address`` cannot be reached.
    """
    _, date, _ = _post(address, ca, FLEET)
    try:
        theirs = parsedate_to_datetime(date)
    except (TypeError, ValueError):
        raise DeployError(f"{address} tells no time in its answers: put the proxy of deploy/proxy in front.") from None
    apart = abs((datetime.now(UTC) - theirs).total_seconds())
    if apart > SKEW:
        raise DeployError(
            f"This clock and that of {address} differ by {apart:.0f} s, and nodes whose clocks differ by more than "
            f"{SKEW:g} s are not let in: set both by NTP."
        )
    return f"{apart:.0f} s from {address}"


def _post(address: str, ca: Path, path: str) -> tuple[int, str, float]:
    """Status, Date header and seconds of an empty POST."""
    host, port = split_address(address)
    try:
        context = ssl.create_default_context(cafile=str(ca))
    except (OSError, ssl.SSLError) as error:
        raise DeployError(
            f"{ca} is no PEM certificate of an authority ({error}): give the federation's ca.pem."
        ) from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    connection = http.client.HTTPSConnection(host, port, timeout=_TIMEOUT, context=context)
    started = time.perf_counter()
    try:
        connection.request("POST", path, body=b"", headers={"Content-Type": "application/x-protobuf"})
        answer = connection.getresponse()
        answer.read(1 << 16)
        return answer.status, answer.getheader("Date", ""), time.perf_counter() - started
    except ssl.SSLCertVerificationError as error:
        raise DeployError(
            f"The certificate of {address} is not to be trusted ({error.verify_message}): check the address, the "
            "clock, and that ca.pem is this federation's."
        ) from None
    except ssl.SSLError as error:
        raise DeployError(f"{address} does not speak TLS ({error.reason}): give the TLS port of the proxy.") from None
    except socket.gaierror:
        raise DeployError(f"The name {host} is not known here: check the name and the machine's DNS.") from None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise DeployError(
            f"{address} cannot be reached ({reason}): check that it runs and that the firewall allows it."
        ) from None
    finally:
        connection.close()
