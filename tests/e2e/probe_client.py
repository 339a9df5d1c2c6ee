"""The real ClientApp with a probe: notes every message that arrives, and dies where ``faults.json`` says.

A test puts this file into a copy of the app as its ClientApp. In ``UMBEL_ROOT`` it appends to ``probe.jsonl`` and
reads ``faults.json``, a list of ``{"kind": message type, "partition": who, "nth": over which of them, or 0 for every,
"how": what dies}``. What dies is

- ``work``: a child process that does the client's whole work and is killed before it can answer. What it did to files
  stays, its answer and its memory are lost, and the coordinator gets an error reply, as in a deployment.
- ``actor``: the process that Flower runs clients in. Its simulation puts an actor that died back into the pool, where
  it fails every message of anyone that it is given, at once.
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
        partition, kind = int(context.node_config["partition-id"]), message.metadata.message_type
        how = _fault(root, partition, kind)
        with (root / "probe.jsonl").open("a") as stream:
            stream.write(json.dumps({"partition": partition, "kind": kind, "dies": bool(how)}) + "\n")
        if how == "actor":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "work":
            raise RuntimeError(_killed_at_work(message, context))
        return real(message, context)


def _fault(root: Path, partition: int, kind: str) -> str:
    noted = (root / "probe.jsonl").read_text().splitlines() if (root / "probe.jsonl").is_file() else []
    before = sum((line["partition"], line["kind"]) == (partition, kind) for line in map(json.loads, noted))
    faults = json.loads((root / "faults.json").read_text()) if (root / "faults.json").is_file() else []
    for fault in faults:
        if (fault["partition"], fault["kind"]) == (partition, kind) and fault["nth"] in (0, before + 1):
            return str(fault["how"])
    return ""


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
