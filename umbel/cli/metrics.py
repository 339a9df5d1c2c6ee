"""``umbel metrics``: the coordinator's figures for Prometheus."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Annotated

import typer

from umbel.cli.console import err, out

app = typer.Typer(add_completion=False)


@app.command()
def metrics(
    listen: Annotated[str, typer.Option(help="Address to serve on, HOST:PORT.")] = "127.0.0.1:9464",
    directory: Annotated[str, typer.Option(help="Folder of all runs.")] = "runs",
    newest: Annotated[int, typer.Option(min=1, help="Runs that are shown, newest first.")] = 50,
    certificate: Annotated[Path | None, typer.Option(help="PEM certificate, to serve over HTTPS.")] = None,
    key: Annotated[Path | None, typer.Option(help="Its key.")] = None,
    clients: Annotated[Path | None, typer.Option(help="PEM of the CA whose client certificates are asked for.")] = None,
    once: Annotated[bool, typer.Option("--once", help="Print the figures and leave.")] = False,
) -> None:
    """Serve the figures of all runs for Prometheus until interrupted; none of them is about one client."""
    from prometheus_client import CollectorRegistry, generate_latest

    from coordinator.metrics import RunsCollector
    from umbel.exposition import Endpoint, expose

    endpoint = Endpoint.parse(listen, certificate=certificate, key=key, clients=clients)
    registry = CollectorRegistry()
    registry.register(RunsCollector(directory, newest))
    if once:
        out.print(generate_latest(registry).decode(), markup=False, soft_wrap=True, end="")
        return
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    with expose(registry, endpoint) as running:
        scheme = "https" if certificate else "http"
        err.print(f"Figures at {scheme}://{endpoint.host}:{running.port}/metrics", markup=False, soft_wrap=True)
        ended.wait()
