import pytest

from coordinator.release.blobs import Blobs
from coordinator.release.publish import publish, release_key
from coordinator.release.registry import Registry, default_url
from tests.federation import finished_run, make
from umbel.signers import pinned_signers


class World:
    """A federation with one released adapter."""

    def __init__(self, root):
        self.root = root
        self.authority = make(root)
        self.hub = self.authority.home("coordinator", "hub")
        self.site = self.authority.home("site", "hospital-a")
        self.run = finished_run(root)
        self.store = root / "releases"
        self.registry = Registry(default_url(self.store))
        self.blobs = Blobs(self.store / "files")
        self.key = release_key(self.hub)
        self.manifest = self.publish()

    def publish(self, name="easy"):
        return publish(self.run, name, self.key, self.registry, self.blobs)

    @property
    def signers(self):
        return set(pinned_signers(self.site / "identity").values())


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)
