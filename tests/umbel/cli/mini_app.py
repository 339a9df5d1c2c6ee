"""A Flower app of a few lines that keeps to the run folder's contract: what the command line is tested against.

It stands on the standard library and flwr alone, so that a failure in it is a failure of the wrapper.
"""

from __future__ import annotations

from pathlib import Path

_PYPROJECT = """
[project]
name = "mini"
version = "0.1.0"
description = "A test."
license = "Apache-2.0"
dependencies = ["flwr"]

[tool.flwr.app]
publisher = "test"
fab-include = ["/mini/**/*.py"]

[tool.flwr.app.components]
serverapp = "mini.server:app"
clientapp = "mini.client:app"

[tool.flwr.app.config.run]
directory = "runs"
id = "auto"
seed = 0

[tool.flwr.app.config.federation]
clients = 2
rounds = 2

[tool.flwr.app.config.secagg]
enabled = false
"""

_SERVER = """
import json, os, pathlib, time
from flwr.app import Message, RecordDict
from flwr.serverapp import ServerApp

app = ServerApp()


@app.main()
def main(grid, context):
    config = context.run_config
    folder = pathlib.Path(os.environ["UMBEL_ROOT"]) / config["run.directory"] / config["run.id"]

    def write(line):
        with (folder / "metrics.jsonl").open("a") as stream:
            stream.write(json.dumps(line) + "\\n")

    while len(list(grid.get_node_ids())) < config["federation.clients"]:
        time.sleep(0.1)
    if config["run.seed"] == 1:
        body = {"message": "The data is gone: bring it back.", "exit_code": 20}
        (folder / "error.json").write_text(json.dumps(body))
        raise SystemExit(20)
    if config["run.seed"] == 2:
        raise ValueError("a defect of the ServerApp")
    write({"kind": "start", "time": 1.0, "baseline": {"private": {"accuracy": 0.5, "count": 10}}})
    for number in range(1, config["federation.rounds"] + 1):
        started = time.time()
        orders = [Message(content=RecordDict(), message_type="train", dst_node_id=node) for node in grid.get_node_ids()]
        replies = [reply for reply in grid.send_and_receive(orders) if reply.has_content()]
        figures = {"private": {"accuracy": 0.5 + 0.1 * number, "loss": 1.0, "count": 10}}
        write({"kind": "round", "round": number, "cohort": len(orders), "survivors": len(replies),
               "train_loss": 1.0, "seconds": {"total": time.time() - started}, "evaluation": figures})
        if config["run.seed"] == 3:
            time.sleep(600)
    write({"kind": "end", "rounds": number, "seconds": 1.0, "evaluation": figures})
"""

_CLIENT = """
from flwr.app import Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message, context):
    return Message(content=RecordDict(), reply_to=message)
"""


def write_app(folder: Path) -> Path:
    (folder / "mini").mkdir(parents=True)
    (folder / "pyproject.toml").write_text(_PYPROJECT)
    (folder / "mini" / "__init__.py").write_text("")
    (folder / "mini" / "server.py").write_text(_SERVER)
    (folder / "mini" / "client.py").write_text(_CLIENT)
    return folder
