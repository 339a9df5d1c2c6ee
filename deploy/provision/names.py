"""Names of members and hosts, checked before they reach a path, a certificate or a command line."""

from __future__ import annotations

import ipaddress
import re

from cryptography import x509

from umbel.errors import DeployError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_LABEL = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)")

LOOPBACK = ("localhost", "127.0.0.1", "::1")
MAX_HOSTS = 32


def check_name(name: str) -> str:
    """``name``, if it can name a member or a federation.

    Raises:
        DeployError: it is empty, longer than 63 characters or holds anything but letters, digits, dot, dash and
            underscore.
    """
    if not _NAME.fullmatch(name):
        raise DeployError(
            f"{name[:80]!r} is no name: use at most 63 letters, digits, dots, dashes and underscores, beginning with a "
            "letter or digit."
        )
    return name


def check_host(host: str) -> str:
    """``host`` in its one form: a DNS name in lower case, or an IP address.

    Raises:
        DeployError: it is neither. Wildcards are refused: a certificate is for one service.
    """
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        pass
    labels = host.split(".")
    if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in labels) or labels[-1].isdigit():
        raise DeployError(f"{host[:80]!r} is no host: give a DNS name without wildcards, or an IP address.")
    return host.lower()


def alternative_names(hosts: list[str] | tuple[str, ...]) -> list[x509.GeneralName]:
    """Subject alternative names for ``hosts`` (RFC 5280, section 4.2.1.6)."""
    names: list[x509.GeneralName] = []
    for host in hosts:
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(host)))
        except ValueError:
            names.append(x509.DNSName(host))
    return names


def hosts_of(names: x509.SubjectAlternativeName) -> list[str]:
    """The hosts in a certificate or request, checked.

    Raises:
        DeployError: there is another kind of name in it, or a host that is none.
    """
    found = list(names)
    if len(found) > MAX_HOSTS:
        raise DeployError(f"A request names {len(found)} hosts: at most {MAX_HOSTS} fit.")
    hosts = []
    for name in found:
        if not isinstance(name, x509.DNSName | x509.IPAddress):
            raise DeployError(
                "A request asks for more than DNS names and IP addresses: make it with 'umbel provision'."
            )
        hosts.append(check_host(str(name.value)))
    return hosts
