"""A site fetches from a real server process over mutual TLS."""

import signal
import socket
import threading
import time
import urllib.error
import urllib.request
from datetime import timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from coordinator.release import fetch as module
from coordinator.release import release_pb2 as pb
from coordinator.release.fetch import ReleaseClient
from coordinator.release.publish import publish, rollback
from coordinator.release.shelf import Shelf, verify_folder
from tests.coordinator.release.conftest import World
from tests.federation import finished_run, make, reissue, release_server
from umbel.errors import DeployError


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """One server process for all tests that leave it as it was."""
    world = World(tmp_path_factory.mktemp("shared"))
    with release_server(world.hub, world.store) as (_, address):
        world.address = address
        yield world


def client(world, tls=None, signers=None, address=None):
    return ReleaseClient(
        address or world.address, tls or world.site / "client", world.signers if signers is None else signers
    )


def test_a_site_lists_pulls_and_verifies(shared, tmp_path):
    with client(shared) as connection:
        (entry,) = connection.list("easy")
        assert (entry.name, entry.version, entry.run, entry.current) == ("easy", 1, "one", True)
        shelf = Shelf(tmp_path, "easy")
        folder = connection.pull("easy", shelf)
    assert folder == tmp_path / "easy" / "1"
    assert (tmp_path / "easy" / "current").resolve() == folder.resolve()
    for file in shared.manifest.files:
        assert (folder / file.name).read_bytes() == (shared.run / "adapter" / file.name).read_bytes()
    assert verify_folder(folder, shared.signers) == shared.manifest
    assert not list((tmp_path / "easy").glob(".*"))


def test_what_is_there_is_not_fetched_again(shared, tmp_path, monkeypatch):
    with client(shared) as connection:
        connection.pull("easy", Shelf(tmp_path, "easy"))
        monkeypatch.setattr(connection, "_fetch", lambda *_: pytest.fail("fetched again"))
        assert connection.pull("easy", Shelf(tmp_path, "easy")) == tmp_path / "easy" / "1"


def test_an_altered_adapter_is_found_on_the_disk(shared, tmp_path):
    with client(shared) as connection:
        folder = connection.pull("easy", Shelf(tmp_path, "easy"))
        weights = folder / "adapter_model.safetensors"
        body = bytearray(weights.read_bytes())
        body[-1] ^= 1
        weights.write_bytes(body)
        with pytest.raises(DeployError, match="is not the file that was signed: it was altered"):
            verify_folder(folder, shared.signers)
        with pytest.raises(DeployError, match="is not the file that was signed"):
            connection.pull("easy", Shelf(tmp_path, "easy"))
        weights.write_bytes((shared.run / "adapter" / weights.name).read_bytes())
        (folder / "extra.json").write_text("{}")
        with pytest.raises(DeployError, match=r"extra\.json is not part of the release"):
            verify_folder(folder, shared.signers)


def test_another_signer_is_not_trusted(shared, tmp_path):
    with (
        client(shared, signers={Ed25519PrivateKey.generate().public_key().public_bytes_raw()}) as connection,
        pytest.raises(DeployError, match="whom nobody here trusts"),
    ):
        connection.pull("easy", Shelf(tmp_path, "easy"))
    assert not (tmp_path / "easy").exists()


@pytest.mark.parametrize("name", ["../easy", "easy/../../x", "/etc/passwd", "EASY"])
def test_names_are_looked_up_and_never_become_paths(shared, name):
    with client(shared) as connection:
        with pytest.raises(DeployError, match="cannot name a release"):
            connection.describe(name)
        for ask in (
            lambda: connection._stub.Describe(pb.DescribeRequest(name=name)),
            lambda: list(connection._stub.Fetch(pb.FetchRequest(name=name, version=1, file="README.md"))),
        ):
            with pytest.raises(DeployError, match=r"refused: .*cannot name a release"):
                connection._retried(ask)


@pytest.mark.parametrize("file", ["../registry.sqlite", "/etc/passwd", "registry.sqlite", "manifest.json", ""])
def test_only_files_of_the_manifest_are_served(shared, file):
    with client(shared) as connection:
        request = pb.FetchRequest(name="easy", version=1, file=file)
        with pytest.raises(DeployError, match="easy 1 has no file"):
            connection._retried(lambda: list(connection._stub.Fetch(request)))
        beyond = pb.FetchRequest(name="easy", version=1, file="README.md", offset=99999999)
        with pytest.raises(DeployError, match="cannot be read from 99999999 on"):
            connection._retried(lambda: list(connection._stub.Fetch(beyond)))


def test_what_does_not_exist_is_said_to_be_unknown(shared, tmp_path):
    with client(shared) as connection:
        with pytest.raises(DeployError, match="Nothing was released under 'other'"):
            connection.pull("other", Shelf(tmp_path, "other"))
        for version in (2, 2**53, 2**64 - 1):
            with pytest.raises(DeployError, match=f"'easy' has no version {version}"):
                connection.describe("easy", version)


def test_a_certificate_of_another_role_is_refused(shared, tmp_path):
    with client(shared, tls=shared.hub / "operator") as connection:
        assert len(connection.list()) == 1
    with pytest.raises(DeployError, match="is not for a client"):
        client(shared, tls=shared.site / "tls")
    folder = copied(shared.site / "client", tmp_path / "courier")
    reissue(shared.authority, "hospital-a", "courier", folder)
    with (
        client(shared, tls=folder) as connection,
        pytest.raises(DeployError, match="is for 'courier', and only client or operator may call"),
    ):
        connection.list()


def test_an_expired_certificate_is_refused_at_both_ends(shared, tmp_path, monkeypatch):
    folder = copied(shared.site / "client", tmp_path / "late")
    reissue(shared.authority, "hospital-a", "client", folder, lifetime=timedelta(minutes=-1))
    with pytest.raises(
        DeployError, match=r"The certificate of 'hospital-a' expired on .* renew it with 'umbel provision"
    ):
        client(shared, tls=folder)
    monkeypatch.setattr("umbel.tls.peer.Peer.require_current", lambda *_: None)  # a site that does not look itself
    with pytest.raises(DeployError, match="refused the certificate of 'hospital-a'"):
        client(shared, tls=folder)


def test_a_foreign_authority_is_refused_by_each_end(shared, tmp_path):
    other = make(tmp_path / "other")
    foreign = other.home("site", "hospital-a") / "client"
    with pytest.raises(DeployError, match=r"was not issued by the authority pinned here .* do not connect"):
        client(shared, tls=foreign)
    # Someone who knows our authority but has another's certificate.
    mixed = copied(foreign, tmp_path / "mixed")
    (mixed / "ca.pem").write_bytes((shared.site / "client" / "ca.pem").read_bytes())
    with pytest.raises(DeployError, match=r"cert\.pem was not issued by the authority in"):
        client(shared, tls=mixed)


def test_a_server_of_another_name_is_refused(shared, tmp_path):
    copied(shared.hub / "release", tmp_path / "hub" / "release")
    reissue(shared.authority, "hub", "release", tmp_path / "hub" / "release", hosts=["elsewhere.example.org"])
    with (
        release_server(tmp_path / "hub", shared.store) as (_, address),
        pytest.raises(DeployError, match="is not for 'localhost': use a name that it carries, or issue it with --host"),
    ):
        client(shared, address=address)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        with pytest.raises(DeployError, match=r"cannot be reached \(Connection refused\)"):
            client(shared, address=f"127.0.0.1:{closed.getsockname()[1]}")


def test_plain_http_gets_no_answer_and_a_plain_port_is_named(shared):
    with pytest.raises((urllib.error.URLError, ConnectionError)):
        urllib.request.urlopen(f"http://{shared.address}/", timeout=10)
    with socket.create_server(("127.0.0.1", 0)) as plain:
        plain.settimeout(10)
        address = f"127.0.0.1:{plain.getsockname()[1]}"

        def answer():
            taken, _ = plain.accept()
            taken.recv(10)
            taken.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            taken.close()

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(DeployError, match="does not speak TLS"):
            client(shared, address=address)
        thread.join()


def test_a_world_readable_key_is_refused_by_both_ends(shared, tmp_path):
    folder = copied(shared.site / "client", tmp_path / "open")
    (folder / "key.pem").chmod(0o640)
    with pytest.raises(DeployError, match=r"key\.pem is open to others \(mode 0640\): run chmod 600"):
        client(shared, tls=folder)
    member = tmp_path / "hub"
    copied(shared.hub / "release", member / "release")
    (member / "release" / "key.pem").chmod(0o604)
    with pytest.raises(AssertionError, match=r"open to others \(mode 0604\)"), release_server(member, shared.store):
        pass


def test_a_download_that_broke_off_goes_on(shared, tmp_path, monkeypatch):
    shelf = Shelf(tmp_path, "easy")
    file = shared.manifest.file("adapter_model.safetensors")
    half = (shared.run / "adapter" / file.name).read_bytes()[: file.size // 2]
    (shelf.part(1) / file.name).write_bytes(half)
    came = []
    add = module.Incoming.add
    monkeypatch.setattr(
        module.Incoming, "add", lambda self, offset, data: came.append(offset) or add(self, offset, data)
    )
    with client(shared) as connection:
        connection.pull("easy", shelf)
    assert came[-1] == len(half)  # the weights are last, and only their second half came
    assert verify_folder(shelf.version(1), shared.signers) == shared.manifest


def test_a_wrong_half_is_discarded_and_the_next_pull_is_right(shared, tmp_path):
    shelf = Shelf(tmp_path, "easy")
    file = shared.manifest.file("adapter_model.safetensors")
    (shelf.part(1) / file.name).write_bytes(bytes(file.size // 2))
    (shelf.part(1) / "stray.py").write_text("")
    with client(shared) as connection:
        with pytest.raises(DeployError, match=r"is not the file that was signed .* it was discarded"):
            connection.pull("easy", shelf)
        assert not shelf.version(1).exists()
        assert connection.pull("easy", shelf) == shelf.version(1)
    assert not (shelf.version(1) / "stray.py").exists()


def copied(source, target):
    target.mkdir(parents=True)
    for path in source.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
        (target / path.name).chmod(path.stat().st_mode & 0o777)
    return target


def test_revoked_renewed_and_rolled_back_without_a_restart(world, tmp_path):
    with release_server(world.hub, world.store) as (process, address):
        world.address = address
        shelf = Shelf(tmp_path / "shelf", "easy")
        with client(world) as connection:
            connection.pull("easy", shelf)
            world.publish()
            assert connection.pull("easy", shelf).name == "2"
            rollback("easy", world.key, world.registry)
            assert connection.pull("easy", shelf).name == "1"
            assert (shelf.folder / "current").readlink().name == "1"

            # The server uses its renewed certificate at the next handshake.
            before = (world.hub / "release" / "cert.pem").read_bytes()
            assert world.authority.renew(["hub"]) == ["hub"]
            assert (world.hub / "release" / "cert.pem").read_bytes() != before
            with client(world) as fresh:
                assert len(fresh.list()) == 2

            # The open connection of a revoked site ends with its next call.
            world.authority.revoke("hospital-a")
            with pytest.raises(DeployError, match="The certificate of 'hospital-a' was revoked on"):
                connection.list()
        with client(world) as again, pytest.raises(DeployError, match="was revoked on"):
            again.pull("easy", shelf)
        assert process.poll() is None

        # Without a list that can be trusted nobody gets in, and the path is no caller's business.
        operator = world.hub / "operator"
        (world.hub / "release" / "crl.pem").write_text("nonsense")
        with client(world, tls=operator) as blind:
            module_sleep, time.sleep = time.sleep, lambda _: None
            try:
                with pytest.raises(DeployError, match="cannot trust its revocation list") as caught:
                    blind.list()
            finally:
                time.sleep = module_sleep
        assert "crl.pem" not in str(caught.value)


def test_an_old_head_is_not_taken_back(world, tmp_path):
    shelf = Shelf(tmp_path / "shelf", "easy")
    old = world.registry.head("easy")
    world.publish()
    with release_server(world.hub, world.store) as (_, address):
        world.address = address
        with client(world) as connection:
            connection.pull("easy", shelf)
            described = connection.describe("easy")
            assert described.head.sequence == 2

            def replay(request, timeout=None):
                first = world.registry.find("easy", 1)
                return pb.Description(
                    manifest=first.manifest,
                    manifest_signature=first.signature,
                    head=old.head,
                    head_signature=old.signature,
                )

            connection._stub.Describe = replay
            with pytest.raises(DeployError, match="version 1 and version 2 was seen before"):
                connection.pull("easy", shelf)
    assert (shelf.folder / "current").readlink().name == "2"


def test_a_server_killed_in_the_middle_is_resumed(tmp_path):
    world = World(tmp_path)
    world.run = finished_run(tmp_path / "big", values=6_000_000)
    publish(world.run, "big", world.key, world.registry, world.blobs)
    shelf = Shelf(tmp_path / "shelf", "big")
    part = shelf.part(1) / "adapter_model.safetensors"
    with release_server(world.hub, world.store) as (process, address):
        world.address = address
        with client(world) as connection:
            add = module.Incoming.add

            def cut(self, offset, data):
                add(self, offset, data)
                if self.offset > 4_000_000 and process.poll() is None:
                    process.send_signal(signal.SIGKILL)
                    process.wait()

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(module.Incoming, "add", cut)
                patch.setattr(module.time, "sleep", lambda _: None)
                with pytest.raises(DeployError, match="cannot be reached"):
                    connection.pull("big", shelf)
    arrived = part.stat().st_size
    assert 4_000_000 < arrived < 24_000_000
    assert not shelf.version(1).exists()
    with release_server(world.hub, world.store) as (_, address):
        world.address = address
        with client(world) as connection:
            folder = connection.pull("big", shelf)
    assert (folder / part.name).read_bytes() == (world.run / "adapter" / part.name).read_bytes()


def test_bytes_altered_at_the_server_are_refused(world, tmp_path):
    blob = world.blobs.path(world.manifest.file("adapter_model.safetensors").sha256)
    body = bytearray(blob.read_bytes())
    body[-1] ^= 1
    blob.chmod(0o644)
    blob.write_bytes(body)
    shelf = Shelf(tmp_path / "shelf", "easy")
    with release_server(world.hub, world.store, "--allow", "hospital-a") as (_, address):
        world.address = address
        with client(world) as connection:
            with pytest.raises(
                DeployError, match=r"is not the file that was signed .* altered on the way or at the server"
            ):
                connection.pull("easy", shelf)
            blob.unlink()
            with pytest.raises(DeployError, match="is not in the store: restore it"):
                connection.pull("easy", shelf)
        assert not shelf.version(1).exists()
        with (
            client(world, tls=world.hub / "operator") as other,
            pytest.raises(DeployError, match="'hub' may not call here"),
        ):
            other.list()


def test_two_servers_do_not_share_a_port(shared):
    port = int(shared.address.rpartition(":")[2])
    with (
        pytest.raises(AssertionError, match="cannot be listened on"),
        release_server(shared.hub, shared.store, port=port),
    ):
        pass
