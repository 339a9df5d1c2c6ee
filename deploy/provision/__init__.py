"""Who belongs to a federation: certificates, node keys, identities and the signed roster.

Every member goes one way, whether its keys are made here or at its own site::

    make_request(folder)  ->  request.json  ->  Authority.sign  ->  grant.json  ->  accept_grant(folder)

A request holds public keys and proofs that the sender has the private ones; a grant holds what the authority signed.
Neither is secret, and no private key ever leaves the folder in which it was made.
"""

from deploy.provision.authority import Authority
from deploy.provision.grant import Grant, accept_grant, read_grant
from deploy.provision.member import Kind, Member
from deploy.provision.request import SigningRequest, make_request, read_request

__all__ = [
    "Authority",
    "Grant",
    "Kind",
    "Member",
    "SigningRequest",
    "accept_grant",
    "make_request",
    "read_grant",
    "read_request",
]
