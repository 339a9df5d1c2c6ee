"""What runs on an actor: a client that answers one device, and perhaps many devices at once."""

from __future__ import annotations

import importlib
import traceback
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

from flwr.app import Context, Message

from simulations.orders import error_reply
from umbel.config import RunConfig
from umbel.errors import ConfigError

Client = Callable[[Message, Context], Message]
ClientSource = str | Client
"""A ClientApp or anything that answers a message, or where it stands: ``module:name``."""

STOCK = "simulations.clients:stock"
"""The ClientApp of this project, with lanes."""


@runtime_checkable
class ManyClient(Protocol):
    """A client that answers many train messages together."""

    def __call__(self, message: Message, context: Context) -> Message:
        """Answers one message."""
        ...

    def many(self, messages: Sequence[Message], contexts: Sequence[Context], *, lanes: int) -> list[Message]:
        """The replies to train messages of different devices, in order."""
        ...

    def warm(self, run_config: dict[str, Any]) -> None:
        """Loads what the process will need."""
        ...


class StockClient:
    """The unchanged ClientApp; train messages of several devices may train as lanes of one batch."""

    def __call__(self, message: Message, context: Context) -> Message:
        """Answers as the ClientApp does."""
        from client.client_app import app

        return app(message, context)

    def many(self, messages: Sequence[Message], contexts: Sequence[Context], *, lanes: int) -> list[Message]:
        """See ManyClient."""
        from simulations.batched.site import answer_train

        return answer_train(messages, contexts, lanes=lanes)

    def warm(self, run_config: dict[str, Any]) -> None:
        """Loads base, adapter modules and task; raises UmbelError when one of them cannot be loaded."""
        from mllm.warm import warm_model, warm_task

        config = RunConfig.from_flat(run_config)
        warm_task(config).partition(config.federation.clients, config.run.seed)
        warm_model(config)


stock = StockClient()


def load_client(source: ClientSource) -> Client:
    """The client that ``source`` names, or ``source`` itself.

    Raises:
        ConfigError: there is no such client.
    """
    if not isinstance(source, str):
        return source
    module, _, name = source.partition(":")
    try:
        found: Client = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        raise ConfigError(f"Client {source!r} cannot be imported: give module:name of something callable.") from None
    return found


def answer_all(client: Client, messages: Sequence[Message], contexts: Sequence[Context], lanes: int) -> list[Message]:
    """One reply a message, in order; a client that raises answers with an error, as under Flower."""
    train = all(message.metadata.message_type == "train" for message in messages)
    if lanes > 1 and train and isinstance(client, ManyClient):
        try:
            return client.many(messages, contexts, lanes=lanes)
        except Exception:
            return [error_reply(message, traceback.format_exc(limit=-3)) for message in messages]
    return [_answer(client, message, context) for message, context in zip(messages, contexts, strict=True)]


def _answer(client: Client, message: Message, context: Context) -> Message:
    try:
        return client(message, context)
    except Exception:
        return error_reply(message, traceback.format_exc(limit=-3))
