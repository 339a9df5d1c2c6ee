"""The ClientApp of ``flwr run``: the project's own, which in Flower's simulation also understands packed messages."""

from __future__ import annotations

from flwr.app import Context, Message

from client.client_app import make_app, open_site
from umbel import wire
from umbel.errors import SiteError, UmbelError

app = make_app(open_site)


def simulated() -> bool:
    """Whether this process is an actor of a simulation. A SuperNode's ClientApp never is."""
    import sys

    ray = sys.modules.get("ray")  # imported already where this is an actor
    return bool(ray is not None and ray.is_initialized() and ray.get_runtime_context().get_actor_id())


@app.query("cohort")
def cohort(message: Message, context: Context) -> Message:
    """Plays many virtual devices; refuses outside a simulation, where a node serves its own data and nobody else's."""
    try:
        if not simulated():
            raise SiteError("A packed order was sent to a real site: only devices of a simulation are played together.")
        from simulations.clients import stock  # not at a site: its process starts for every message
        from simulations.packed import answer_packed

        content = answer_packed(message.content, context, stock)
    except UmbelError as error:
        content = wire.pack_refusal(wire.Refusal(error.exit_code, str(error)))
    return Message(content, reply_to=message)
