"""gRPC handlers with something around them, for interceptors of a server."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc

Behaviour = Callable[..., Any]


def rewrapped(
    handler: Any, single: Callable[[Behaviour], Behaviour], streaming: Callable[[Behaviour], Behaviour]
) -> grpc.RpcMethodHandler[Any, Any]:
    """A handler of the same kind and coding as ``handler``, which is left as it was.

    Args:
        handler: what gRPC's continuation gave, not None.
        single: makes the new behaviour from one that answers with one message.
        streaming: the same for one that answers with many.
    """
    kind = f"{'stream' if handler.request_streaming else 'unary'}_{'stream' if handler.response_streaming else 'unary'}"
    wrap = streaming if handler.response_streaming else single
    make = getattr(grpc, f"{kind}_rpc_method_handler")
    made: grpc.RpcMethodHandler[Any, Any] = make(
        wrap(getattr(handler, kind)),
        request_deserializer=handler.request_deserializer,
        response_serializer=handler.response_serializer,
    )
    return made
