import os
import shutil

import pytest

from tests.client.agent.houses import AgentProcess, Authority, enrol, make_house, policy_for
from tests.federated import make_base, make_folder


@pytest.fixture(scope="session")
def agent_root(tmp_path_factory):
    """A tiny base and data for sites; a short path, because the path of a socket is bounded."""
    root = tmp_path_factory.mktemp("s")
    make_base(root / "base")
    make_folder(root / "data")
    return root


@pytest.fixture
def own_root(agent_root, tmp_path):
    """The same base, and a copy of the data that a test may change."""
    os.symlink(agent_root / "base", tmp_path / "base")
    shutil.copytree(agent_root / "data", tmp_path / "data")
    return tmp_path


@pytest.fixture(scope="session")
def authority():
    return Authority()


@pytest.fixture(scope="session")
def served(agent_root, authority, tmp_path_factory):
    """One agent in a process of its own, on a socket and on a port: the process and its house."""
    folder = tmp_path_factory.mktemp("h")
    authority.issue(folder / "tls", "hospital-a", "agent", server=True)
    port = free_port()
    table = policy_for(agent_root, listen={"address": f"localhost:{port}", "tls": "tls"})
    house = make_house(folder, table)
    enrol([house])
    process = AgentProcess(house).wait()
    yield process, house
    assert process.stop() == 0, process.output.read_text()


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def site(tmp_path):
    """Makes a site's folder whose policy differs so from that of the small run; ``site.root`` holds it."""

    def make(**changes):
        return make_house(tmp_path / "site", policy_for(tmp_path, **changes))

    make.root = tmp_path
    return make
