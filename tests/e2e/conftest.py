import secrets

import pytest

from tests.e2e.checkout import ROOT, copy_checkout, replace_client
from tests.e2e.real_run import World, kill_everything


@pytest.fixture(scope="session")
def app(tmp_path_factory):
    """The Flower app of a clean checkout."""
    return copy_checkout(tmp_path_factory.mktemp("checkout") / "umbel")


@pytest.fixture(scope="session")
def probed_app(tmp_path_factory):
    """The same with a probe around its ClientApp."""
    folder = copy_checkout(tmp_path_factory.mktemp("probed") / "umbel")
    replace_client(folder, "probe_client", ROOT / "tests" / "e2e" / "probe_client.py")
    return folder


@pytest.fixture
def world(app, tmp_path):
    made = World(app, tmp_path, secrets.token_hex(8))
    yield made
    kill_everything(made)


@pytest.fixture
def probed_world(probed_app, tmp_path):
    made = World(probed_app, tmp_path, secrets.token_hex(8))
    yield made
    kill_everything(made)
