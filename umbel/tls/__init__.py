"""Mutual TLS as every service of umbel speaks it: plain PEM files in a folder, read again when they change.

::

    agent/
    ├── ca.pem       the federation's certificate authority, pinned
    ├── cert.pem     this service's certificate
    ├── key.pem      its private key, mode 0600
    └── crl.pem      what the authority has revoked; a server reads it again on every call

A server::

    credentials = server_credentials(folder)
    server = grpc.server(pool, interceptors=[PeerCheck(folder, roles={"client"})])
    server.add_secure_port(address, credentials)

A client::

    with open_channel("hospital-a:9443", folder, role="agent") as channel: ...

Guarantees: both ends prove a certificate of the pinned authority; the server's name (or address) stands in its
certificate; a renewed certificate is used from the next handshake on and a revoked or expired one is refused from the
next call on, without a restart; keys that others may read are refused. Not covered: a stream that is silent after a
revocation ends with its next message.
"""

from umbel.keyfile import read_private
from umbel.tls.channel import channel_credentials, open_channel, probe, split_address
from umbel.tls.identity import TlsIdentity, load_identity
from umbel.tls.peer import Peer, peer_of, read_peer
from umbel.tls.revocation import RevocationList
from umbel.tls.server import PeerCheck, server_credentials

__all__ = [
    "Peer",
    "PeerCheck",
    "RevocationList",
    "TlsIdentity",
    "channel_credentials",
    "load_identity",
    "open_channel",
    "peer_of",
    "probe",
    "read_peer",
    "read_private",
    "server_credentials",
    "split_address",
]
