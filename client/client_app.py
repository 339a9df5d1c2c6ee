"""The Flower ClientApp: a thin courier between the federation and the Site.

It unpacks a message, hands it to the site, and packs the answer. It holds no data, no model and no
secret of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from functools import lru_cache
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from client.site import Site
from umbel import wire
from umbel.config import RunConfig
from umbel.errors import ConfigError, UmbelError
from umbel.wire import MessageType, SecAggStep

_STAGES = (
    MessageType.SECAGG_SHARE,
    MessageType.SECAGG_MASK,
    MessageType.SECAGG_CONFIRM,
    MessageType.SECAGG_UNMASK,
)


def open_site(context: Context) -> Site:
    """The site behind this node: the agent that its configuration names, or else the partition, in this process.

    With ``agent`` in the node's configuration (``unix:///path``, or ``host:port`` with the folder
    ``agent-tls`` of certificates) this process only carries messages.

    Raises:
        ConfigError: the run's options are wrong, the node has neither an agent nor a partition, or its rank is no
            whole number.
    """
    if "agent" in context.node_config:
        from client.agent.remote_site import remote_site

        return remote_site(context)
    from client.local_site import LocalSite  # what it stands on takes seconds to import, a courier needs none of it
    from client.store import ContextStore

    config = _options(tuple((key, value, type(value)) for key, value in context.run_config.items()))
    index, count = context.node_config.get("partition-id"), context.node_config.get("num-partitions")
    if not (isinstance(index, int) and isinstance(count, int)):
        raise ConfigError(
            "This node has no partition: start it with --node-config 'partition-id=0 num-partitions=2' or an agent."
        )
    rank = context.node_config.get("rank")
    if rank is not None and type(rank) is not int:
        raise ConfigError(f"This node's rank is {rank!r}, expected a whole number: write --node-config 'rank=4'.")
    return LocalSite(config, index, count, ContextStore(context.state), run=str(context.run_id), rank=rank)


@lru_cache(maxsize=4)
def _options(flat: tuple[tuple[str, Any, type], ...]) -> RunConfig:
    """Validated once for all devices that a simulation's process plays."""
    return RunConfig.from_flat({key: value for key, value, _ in flat})


def make_app(opener: Callable[[Context], Site]) -> ClientApp:
    """A ClientApp that opens its site with ``opener`` for every message."""
    made = ClientApp()

    def answer(message: Message, context: Context, work: Callable[[Site], RecordDict]) -> Message:
        try:
            with closing(opener(context)) as site:
                content = work(site)
        except UmbelError as error:
            content = wire.pack_refusal(wire.Refusal(error.exit_code, str(error)))
        return Message(content, reply_to=message)

    @made.query("describe")
    def describe(message: Message, context: Context) -> Message:
        """Says which adapter this site would train."""
        return answer(message, context, lambda site: wire.pack_description(site.describe()))

    @made.train()
    def train(message: Message, context: Context) -> Message:
        """Trains one round; answers with the update, or with the first secure-aggregation message."""

        def work(site: Site) -> RecordDict:
            reply = site.train(wire.unpack_train_order(message.content))
            return wire.pack_secagg(reply) if isinstance(reply, SecAggStep) else wire.pack_train_reply(reply)

        return answer(message, context, work)

    @made.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        """Evaluates the global adapter on the site's own data."""
        order = wire.unpack_evaluate_order
        return answer(message, context, lambda site: wire.pack_metrics(site.evaluate(order(message.content))))

    def secagg(message: Message, context: Context) -> Message:
        stage = MessageType(message.metadata.message_type)
        step = wire.unpack_secagg
        return answer(message, context, lambda site: wire.pack_secagg(site.secagg(stage, step(message.content))))

    for stage in _STAGES:
        made.query(stage.value.removeprefix("query."))(secagg)
    return made


app = make_app(open_site)
