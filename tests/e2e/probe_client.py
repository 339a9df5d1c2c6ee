"""The real ClientApp with a probe: notes every message that arrives, and dies where ``faults.json`` says.

A test puts this file into a copy of the app as its ClientApp. In ``UMBEL_ROOT`` it appends to ``probe.jsonl`` and
reads ``faults.json``: message type to the partitions whose process is killed over such a message.

Flower's simulation puts an actor that died back into its pool, where it fails every later message of anyone. So the
death is that of a child process which does the client's whole work and is killed before it can answer: what it did
to files stays, its answer and its memory are lost, and the coordinator gets Flower's error reply.
"""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from client.client_app import app as real


class ProbedApp(ClientApp):
    """The real app behind a probe."""

    def __call__(self, message: Message, context: Context) -> Message:
        """Answers as the real app does, unless this is where the client dies."""
        root = Path(os.environ["UMBEL_ROOT"])
        partition, kind = context.node_config["partition-id"], message.metadata.message_type
        faults = root / "faults.json"
        dies = faults.is_file() and partition in json.loads(faults.read_text()).get(kind, [])
        line = json.dumps({"partition": partition, "kind": kind, "dies": dies}) + "\n"
        with (root / "probe.jsonl").open("a") as stream:
            stream.write(line)
        if dies:
            raise RuntimeError(_killed_at_work(message, context))
        return real(message, context)


def _killed_at_work(message: Message, context: Context) -> str:
    child = os.fork()
    if child == 0:
        signal.alarm(60)  # should the work not end, the alarm does
        try:
            done = not real(message, context).has_error()
        except BaseException:
            done = False
        if done:
            os.kill(os.getpid(), signal.SIGKILL)
        os._exit(1)
    status = os.waitpid(child, 0)[1]
    return f"probe: the client's process ended with status {status}"


app = ProbedApp()
