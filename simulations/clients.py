"""What runs on an actor: a client that answers one device, and perhaps many devices at once."""

from __future__ import annotations

import importlib
import traceback
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from flwr.app import Context, Message

from simulations.orders import CRASHED, error_reply
from umbel.config import RunConfig
from umbel.errors import ConfigError
from umbel.wire import Refusal, TrainReply

if TYPE_CHECKING:
    from client.site import Site

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


@runtime_checkable
class FoldedClient(Protocol):
    """A client whose train replies need not become messages where they are summed in its own process."""

    def __call__(self, message: Message, context: Context) -> Message:
        """Answers one message."""
        ...

    def replies(
        self, messages: Sequence[Message], contexts: Sequence[Context], *, lanes: int
    ) -> list[TrainReply | Refusal]:
        """What the replies to train messages of different devices would carry, in order."""
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

        return answer_train(messages, contexts, lanes=lanes, opener=self._open)

    def replies(
        self, messages: Sequence[Message], contexts: Sequence[Context], *, lanes: int
    ) -> list[TrainReply | Refusal]:
        """See FoldedClient."""
        from simulations.batched.site import plain_replies

        return plain_replies(messages, contexts, lanes=lanes, opener=self._open)

    def _open(self, context: Context) -> Site:
        from client.client_app import open_site

        return open_site(context)

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
    """One reply a message, in order; a client that raises answers with an error, as under Flower.

    Train messages are handed to a :class:`ManyClient` in groups of ``lanes``.
    """
    train = all(message.metadata.message_type == "train" for message in messages)
    if lanes == 1 or not train or not isinstance(client, ManyClient):
        return [_answer(client, message, context) for message, context in zip(messages, contexts, strict=True)]
    replies: list[Message] = []
    for start in range(0, len(messages), lanes):
        part = slice(start, start + lanes)
        try:
            replies += client.many(messages[part], contexts[part], lanes=lanes)
        except Exception:
            replies += [error_reply(message, traceback.format_exc(limit=-3)) for message in messages[part]]
    return replies


def replies_of(
    client: FoldedClient, messages: Sequence[Message], contexts: Sequence[Context], lanes: int
) -> list[TrainReply | Refusal]:
    """As :func:`answer_all` for train messages whose replies are summed here."""
    found: list[TrainReply | Refusal] = []
    for start in range(0, len(messages), max(lanes, 1)):
        part = slice(start, start + max(lanes, 1))
        try:
            found += client.replies(messages[part], contexts[part], lanes=lanes)
        except Exception:
            failed = error_reply(messages[start], traceback.format_exc(limit=-3))
            found += [crashed(failed)] * len(messages[part])
    return found


def crashed(reply: Message) -> Refusal:
    """What an error reply says, as the coordinator reads it."""
    from coordinator.courier import read_reply

    return read_reply(0, reply).refusal or Refusal(CRASHED, "the device failed")


def _answer(client: Client, message: Message, context: Context) -> Message:
    try:
        return client(message, context)
    except Exception:
        return error_reply(message, traceback.format_exc(limit=-3))
