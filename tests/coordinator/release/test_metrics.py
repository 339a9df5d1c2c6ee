"""What a release server shows Prometheus: counted by real calls over mutual TLS."""

import shutil
import urllib.request
from contextlib import contextmanager, suppress

import grpc
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from coordinator.release import release_pb2 as pb
from coordinator.release import release_pb2_grpc as rpc
from coordinator.release.fetch import ReleaseClient
from coordinator.release.metrics import ReleaseMetrics
from coordinator.release.server import make_server
from coordinator.release.shelf import Shelf
from tests.coordinator.release.conftest import World
from tests.e2e.deployed import free_port
from tests.federation import reissue, release_server
from umbel.errors import DeployError
from umbel.tls import open_channel


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("metrics"))


@pytest.fixture
def served(world):
    """The figures of a server of this process, and its address."""
    figures = CollectorRegistry()
    server, port = make_server(
        "localhost:0", world.hub / "release", world.registry, world.blobs, metrics=ReleaseMetrics(figures)
    )
    server.start()
    yield figures, f"localhost:{port}"
    server.stop(None).wait()


@contextmanager
def stub(world, address):
    with open_channel(address, world.site / "client", role="release", timeout=10) as channel:
        yield rpc.ReleasesStub(channel)


def counted(figures, what, **labels):
    return figures.get_sample_value(f"umbel_release_{what}", labels)


def test_a_pull_is_counted_with_its_bytes(world, served, tmp_path):
    figures, address = served
    assert counted(figures, "requests_total", method="Fetch") == 0
    with ReleaseClient(address, world.site / "client", world.signers) as client:
        client.pull("easy", Shelf(tmp_path, "easy"))
    assert counted(figures, "requests_total", method="Describe") == 1
    assert counted(figures, "requests_total", method="Fetch") == len(world.manifest.files)
    assert counted(figures, "bytes_total", release="easy") == world.manifest.size > 0
    assert counted(figures, "request_seconds_count", method="Fetch") == len(world.manifest.files)
    assert not [s for f in figures.collect() for s in f.samples if s.name == "umbel_release_refusals_total"]


def test_a_resumed_file_counts_what_was_sent(world, served):
    figures, address = served
    file = max(world.manifest.files, key=lambda file: file.size)
    with stub(world, address) as calls:
        request = pb.FetchRequest(name="easy", version=1, file=file.name, offset=file.size - 7)
        assert sum(len(chunk.data) for chunk in calls.Fetch(request, timeout=10)) == 7
    assert counted(figures, "bytes_total", release="easy") == 7


@pytest.mark.parametrize(
    ("method", "request_", "reason"),
    [
        ("List", pb.ListRequest(name="../x"), "invalid_argument"),
        ("Describe", pb.DescribeRequest(name="nothing"), "not_found"),
        ("Fetch", pb.FetchRequest(name="easy", version=9, file="README.md"), "not_found"),
        ("Fetch", pb.FetchRequest(name="easy", version=1, file="no.md"), "invalid_argument"),
        ("Fetch", pb.FetchRequest(name="easy", version=1, file="adapter_config.json", offset=2**40), "out_of_range"),
    ],
)
def test_a_refusal_is_counted_by_its_reason_and_makes_no_series_of_names(world, served, method, request_, reason):
    figures, address = served
    with stub(world, address) as calls, pytest.raises(grpc.RpcError):
        list(getattr(calls, method)(request_, timeout=10))
    assert counted(figures, "refusals_total", method=method, reason=reason) == 1
    names = {value for family in figures.collect() for sample in family.samples for value in sample.labels.values()}
    assert not names & {"nothing", "../x", "no.md", "hospital-a"}


def test_a_certificate_that_may_not_fetch_is_counted(world, served, tmp_path):
    figures, address = served
    folder = shutil.copytree(world.site / "client", tmp_path / "courier")
    reissue(world.authority, "hospital-a", "courier", folder)
    with open_channel(address, folder, role="release", timeout=10) as channel, pytest.raises(grpc.RpcError):
        rpc.ReleasesStub(channel).List(pb.ListRequest(), timeout=10)
    assert counted(figures, "refusals_total", method="List", reason="permission_denied") == 1
    assert counted(figures, "requests_total", method="List") == 1


def test_an_altered_file_of_the_store_is_counted(tmp_path):
    own = World(tmp_path)
    figures = CollectorRegistry()
    server, port = make_server(
        "localhost:0", own.hub / "release", own.registry, own.blobs, metrics=ReleaseMetrics(figures)
    )
    for path in (own.store / "files").rglob("*"):
        if path.is_file():
            path.chmod(0o600)
            path.unlink()
    server.start()
    with suppress(DeployError), ReleaseClient(f"localhost:{port}", own.site / "client", own.signers) as client:
        client.pull("easy", Shelf(tmp_path / "shelf", "easy"))
    server.stop(None).wait()
    assert counted(figures, "refusals_total", method="Fetch", reason="data_loss") == 1


def test_the_command_serves_the_figures(world):
    port = free_port()
    with (
        release_server(world.hub, world.store, "--metrics", f"127.0.0.1:{port}") as (_, address),
        ReleaseClient(address, world.site / "client", world.signers) as client,
    ):
        client.list("easy")
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            text = answer.read().decode()
    found = {
        s.name: s.value for f in text_string_to_metric_families(text) for s in f.samples if "List" in s.labels.values()
    }
    assert found["umbel_release_requests_total"] == 1
