import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")

import pytest
from hypothesis import settings

settings.register_profile("umbel", deadline=None, print_blob=True)
settings.load_profile("umbel")


@pytest.fixture(autouse=True)
def _one_thread():
    """Two workers share two cores; more threads would only fight."""
    import sys

    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_root(tmp_path_factory):
    """A folder with a tiny base and a small data folder, for runs."""
    from tests.federated import make_base, make_folder

    root = tmp_path_factory.mktemp("tiny")
    make_base(root / "base")
    make_folder(root / "data")
    return root


@pytest.fixture
def own_home(tmp_path, monkeypatch):
    """An UMBEL_HOME of the test's own, with a machine secret of its own."""
    from umbel.machine import machine_secret

    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("UMBEL_HOME", str(folder))
    machine_secret.cache_clear()
    yield folder
    machine_secret.cache_clear()
