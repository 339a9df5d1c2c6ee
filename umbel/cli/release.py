"""``umbel release``: sign, serve, fetch and verify the adapters of finished runs."""

from __future__ import annotations

import signal
import threading
import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from umbel.cli.console import out
from umbel.errors import DeployError

if TYPE_CHECKING:
    from coordinator.release.blobs import Blobs
    from coordinator.release.registry import Registry

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Sign, serve, fetch and verify adapters.")

Member = Annotated[Path, typer.Option("--member", help="Folder that provisioning wrote for this site or coordinator.")]
Store = Annotated[Path | None, typer.Option("--store", help="Folder of released files; default: releases beside runs.")]
Database = Annotated[
    str | None,
    typer.Option(
        "--database", envvar="UMBEL_RELEASE_DATABASE", help="sqlite:///path or postgresql://...; default in the store."
    ),
]
Server = Annotated[str | None, typer.Option("--server", help="host:port of the release server.")]


@app.command()
def publish(
    run: Annotated[str, typer.Argument(help="Id of the finished run, or its folder.")],
    member: Member,
    name: Annotated[str, typer.Option(help="Name of the release; versions count under it.")] = "adapter",
    store: Store = None,
    database: Database = None,
    directory: Annotated[str, typer.Option(help="Folder of all runs.")] = "runs",
) -> None:
    """Sign a run's adapter and make it the current version of a release."""
    from coordinator.release.publish import publish as do
    from coordinator.release.publish import release_key
    from coordinator.run_folder import find_run

    registry, blobs = _open(store, database)
    manifest = do(find_run(run, directory), name, release_key(member), registry, blobs)
    _line(f"Released {manifest.name} {manifest.version}: {len(manifest.files)} files, {manifest.size} bytes.")
    _line(manifest.privacy.statement)


@app.command()
def serve(
    member: Member,
    listen: Annotated[str, typer.Option(help="host:port to listen on.")] = "0.0.0.0:8444",
    allow: Annotated[list[str] | None, typer.Option(help="Only these members may fetch; repeat. Default: all.")] = None,
    metrics: Annotated[str, typer.Option(help="host:port for Prometheus; nothing is shown where this is empty.")] = "",
    store: Store = None,
    database: Database = None,
) -> None:
    """Serve the releases to members of the federation, until stopped."""
    from prometheus_client import CollectorRegistry

    from coordinator.release.metrics import ReleaseMetrics
    from coordinator.release.server import make_server
    from umbel.exposition import Endpoint, expose

    figures = CollectorRegistry()
    registry, blobs = _open(store, database)
    server, port = make_server(
        listen, member / "release", registry, blobs, names=allow, metrics=ReleaseMetrics(figures) if metrics else None
    )
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with expose(figures, Endpoint.parse(metrics)) if metrics else nullcontext():
        server.start()
        _line(f"Serving releases on {listen.rpartition(':')[0]}:{port}; stop with Ctrl-C.")
        stop.wait()
        server.stop(5).wait()
    registry.close()


@app.command("list")
def show(
    name: Annotated[str, typer.Argument(help="Only this release.")] = "",
    server: Server = None,
    member: Annotated[
        Path | None, typer.Option("--member", help="Folder of this member; needed with --server.")
    ] = None,
    store: Store = None,
    database: Database = None,
) -> None:
    """List releases: of a server, or of the store on this machine."""
    table = Table(box=None, pad_edge=False)
    for column in ("release", "version", "run", "published", "bytes", ""):
        table.add_column(column, no_wrap=True, justify="right" if column in ("version", "bytes") else "left")
    if server is not None:
        from coordinator.release.fetch import ReleaseClient

        if member is None:
            raise DeployError("A server lists releases to members only: give the folder of yours with --member.")
        with ReleaseClient(server, *_trust(member)) as client:
            rows = [(e.name, e.version, e.run, e.created, e.bytes, e.current) for e in client.list(name)]
    else:
        registry, _ = _open(store, database)
        rows = [(r.name, r.version, r.run, r.created, r.size, now) for r, now in registry.releases(name)]
    for title, version, run, created, size, current in rows:
        when = time.strftime("%Y-%m-%d %H:%M", time.gmtime(created))
        table.add_row(_plain(title), str(version), _plain(run), when, str(size), "current" if current else "")
    if rows:
        out.print(table)
    else:
        _line("Nothing was released yet.")


@app.command()
def pull(
    name: Annotated[str, typer.Argument(help="Name of the release.")],
    server: Annotated[str, typer.Option(help="host:port of the release server.")],
    member: Member,
    into: Annotated[Path, typer.Option(help="Folder of fetched releases.")] = Path("adapters"),
    version: Annotated[int, typer.Option(min=0, help="A certain version; 0 takes the current one.")] = 0,
) -> None:
    """Fetch a release, verify it, and put it in place whole. A download that broke off goes on."""
    from coordinator.release.fetch import ReleaseClient
    from coordinator.release.shelf import Shelf

    with ReleaseClient(server, *_trust(member)) as client:
        folder = client.pull(name, Shelf(into, name), version)
    _line(str(folder))


@app.command()
def verify(
    folder: Annotated[Path, typer.Argument(help="A fetched version.")],
    member: Member,
) -> None:
    """Verify a fetched release: who signed it, and that no file was altered."""
    from coordinator.release.shelf import verify_folder
    from umbel.signers import pinned_signers

    manifest = verify_folder(folder.expanduser().absolute(), set(pinned_signers(member / "identity").values()))
    _line(f"{manifest.name} {manifest.version} is as it was signed: run {manifest.run}, base {manifest.base.name}.")
    _line(manifest.privacy.statement)


@app.command()
def rollback(
    name: Annotated[str, typer.Argument(help="Name of the release.")],
    member: Member,
    version: Annotated[int, typer.Option(min=0, help="To this version; 0 takes the one before the current.")] = 0,
    store: Store = None,
    database: Database = None,
) -> None:
    """Make an earlier version the current one; sites get it with their next pull."""
    from coordinator.release.publish import release_key
    from coordinator.release.publish import rollback as do

    registry, _ = _open(store, database)
    _line(f"{name} {do(name, release_key(member), registry, version)} is current.")


def _open(store: Path | None, database: str | None) -> tuple[Registry, Blobs]:
    from coordinator.release.blobs import Blobs
    from coordinator.release.registry import Registry, default_url
    from umbel.paths import runs_root

    root = runs_root("releases") if store is None else store.expanduser().absolute()
    return Registry(database or default_url(root)), Blobs(root / "files")


def _trust(member: Path) -> tuple[Path, set[bytes]]:
    """The certificate to show, a site's or an operator's, and whose releases to take."""
    from umbel.signers import pinned_signers

    tls = member / "client" if (member / "client").is_dir() else member / "operator"
    return tls, set(pinned_signers(member / "identity").values())


def _plain(text: str) -> str:
    """A server's text without control characters or markup."""
    return "".join(letter for letter in text[:80] if letter.isprintable()).replace("[", "(")


def _line(text: str) -> None:
    out.print(text, markup=False, soft_wrap=True)
