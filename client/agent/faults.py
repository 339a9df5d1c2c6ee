"""Our exceptions over gRPC: the sentence as details of the status, the class in trailing metadata."""

from __future__ import annotations

import logging
from typing import Any, NoReturn

import grpc

from umbel import errors
from umbel.errors import DataError, ProtocolViolation, SiteError, UmbelError

logger = logging.getLogger("umbel.agent")

_CLASS, _REASON = "umbel-error", "umbel-reason"
_LONGEST = 2000
_DATA = "This site cannot use its data for this run: its operator finds why in the site's log."
_KNOWN = {name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, UmbelError)}


def refuse(context: grpc.ServicerContext, error: BaseException) -> NoReturn:
    """Ends the call with an error. What was not raised on purpose is told to nobody outside this process.

    Nor is what is wrong with the data: such a sentence names files and lines, and comes from single examples. The log
    has it in full.
    """
    if isinstance(error, UmbelError):
        metadata = [(_CLASS, type(error).__name__)]
        if isinstance(error, ProtocolViolation):
            metadata.append((_REASON, error.reason))
        context.set_trailing_metadata(tuple(metadata))
        said = _DATA if isinstance(error, DataError) else str(error)
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, said[:_LONGEST])
    if context.is_active():
        logger.error("The agent failed unexpectedly", exc_info=error)
    context.abort(grpc.StatusCode.INTERNAL, "The agent failed unexpectedly.")
    raise AssertionError("abort returned")


def understood(error: Any, address: str, seconds: float) -> UmbelError:
    """What a failed call means to the courier: the site's own refusal, or one sentence about the connection.

    Args:
        error: a ``grpc.RpcError`` of a call, which is a ``grpc.Call`` too.
        address: of the agent.
        seconds: that the call was given.
    """
    code, details = error.code(), error.details() or ""
    if code is grpc.StatusCode.FAILED_PRECONDITION and details:
        said = dict(error.trailing_metadata() or ())
        kind = _KNOWN.get(str(said.get(_CLASS)), SiteError)
        if kind is ProtocolViolation:
            return ProtocolViolation(details, str(said.get(_REASON, "malformed")))
        return kind(details)
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return SiteError(f"The agent at {address} did not answer within {seconds:g} s: raise federation.timeout.")
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return SiteError(f"The agent at {address} takes no message of this size, or is busy ({details}).")
    if code in (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED):
        return SiteError(f"The agent at {address} refused this caller: {details}")
    if code is grpc.StatusCode.UNAVAILABLE:
        return SiteError(f"The agent at {address} cannot be reached ({details}): start it with umbel site serve.")
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return SiteError(f"What listens at {address} is no agent of this version: both ends must run the same umbel.")
    return SiteError(f"The agent at {address} failed ({code.name}: {details}): its own log says why.")
