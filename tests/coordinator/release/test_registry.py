"""One contract for both databases: versions, heads, races, and what an unreachable database says."""

import threading

import pytest

from coordinator.release.registry import Registry, Release, default_url
from tests.postgres import postgres
from umbel.errors import DeployError


@pytest.fixture(scope="module")
def server():
    with postgres() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    return default_url(tmp_path) if request.param == "sqlite" else request.getfixturevalue("server")


@pytest.fixture
def name(request):
    """The server is shared: every test releases under a name of its own."""
    return "r" + str(abs(hash(request.node.name)))[:12]


def row(name, version):
    return Release(name=name, version=version, run="one", created=version, size=7, manifest=b"m", signature=b"s")


def head(version, sequence):
    return f"{version}/{sequence}".encode(), b"signature"


def publish(registry, name):
    registry.publish(name, lambda version: row(name, version), head)


def test_versions_count_up_and_the_newest_is_current(url, name):
    registry = Registry(url)
    assert registry.find(name) is None
    assert registry.head(name) is None
    publish(registry, name)
    publish(registry, name)
    assert [(release.version, current) for release, current in registry.releases(name)] == [(2, True), (1, False)]
    assert registry.find(name).version == 2
    assert registry.find(name, 1).version == 1
    assert registry.find(name, 3) is None
    assert registry.head(name).head == b"2/2"


def test_going_back_is_a_new_head_and_survives_a_restart(url, name):
    registry = Registry(url)
    publish(registry, name)
    publish(registry, name)
    registry.make_current(name, 1, head)
    registry.close()
    again = Registry(url)
    assert again.find(name).version == 1
    assert (again.head(name).sequence, again.head(name).head) == (3, b"1/3")
    assert [(e.action, e.version) for e in again.events() if e.name == name] == [
        ("publish", 1),
        ("publish", 2),
        ("rollback", 1),
    ]
    with pytest.raises(DeployError, match=f"{name} has no version 9"):
        again.make_current(name, 9, head)


def test_a_failed_signature_leaves_nothing(url, name):
    registry = Registry(url)

    def broken(version, sequence):
        raise DeployError("no key")

    with pytest.raises(DeployError, match="no key"):
        registry.publish(name, lambda version: row(name, version), broken)
    assert registry.find(name, 1) is None
    assert [e for e in registry.events() if e.name == name] == []


def test_publishers_at_once_get_different_versions(url, name):
    registries = [Registry(url) for _ in range(3)]
    errors = []

    def work(registry):
        try:
            for _ in range(4):
                publish(registry, name)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(registry,)) for registry in registries]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    releases = registries[0].releases(name)
    assert sorted(release.version for release, _ in releases) == list(range(1, 13))
    assert registries[0].head(name).sequence == 12
    assert [release.version for release, current in releases if current] == [12]


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("mysql://a@b/c", "'mysql' is not supported"),
        ("nonsense", "URL is none"),
        ("sqlite:////dev/null/x/registry.sqlite", "cannot be made"),
        ("postgresql://umbel:secret@/x?host=/nowhere", "cannot be used"),
    ],
)
def test_a_database_that_cannot_be_used_is_one_sentence_without_the_password(url, sentence):
    with pytest.raises(DeployError, match=sentence) as caught:
        Registry(url)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)
