"""Identities, revocation lists and the check of callers, on certificates that provisioning made."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import grpc
import pytest

from deploy.provision import certificates as build
from deploy.provision.keys import authority_key
from tests.federation import make
from umbel.errors import DeployError
from umbel.tls import PeerCheck, RevocationList, load_identity, open_channel, peer_of, server_credentials, split_address


@pytest.fixture
def authority(tmp_path):
    return make(tmp_path)


@pytest.fixture
def agent(authority):
    return authority.home("site", "hospital-a") / "tls"


@pytest.fixture
def caller(authority):
    return authority.home("site", "hospital-a") / "client"


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620, 0o601])
def test_a_key_open_to_others_is_refused(agent, mode):
    (agent / "key.pem").chmod(mode)
    with pytest.raises(DeployError, match=rf"open to others \(mode {mode:04o}\): run chmod 600"):
        load_identity(agent)


@pytest.mark.parametrize("name", ["ca.pem", "cert.pem", "key.pem"])
def test_what_is_missing_or_broken_is_named(agent, name):
    path = agent / name
    path.write_bytes(b"nonsense")
    with pytest.raises(DeployError, match=name.replace(".", r"\.")):
        load_identity(agent)
    path.write_bytes(b"x" * 70_000)
    with pytest.raises(DeployError, match="is larger than 65536 bytes"):
        load_identity(agent)
    path.unlink()
    with pytest.raises(DeployError, match=rf"{name} cannot be read \(No such file"):
        load_identity(agent)


def test_dates_are_checked(agent):
    now = datetime.now(UTC)
    with pytest.raises(DeployError, match="expired on"):
        load_identity(agent, now=now + timedelta(days=31))
    with pytest.raises(DeployError, match=r"is valid only from .* set the clock"):
        load_identity(agent, now=now - timedelta(days=1))


def test_a_key_of_another_certificate_is_refused(agent, caller):
    (agent / "key.pem").write_bytes((caller / "key.pem").read_bytes())
    with pytest.raises(DeployError, match=r"key\.pem does not belong to .*cert\.pem"):
        load_identity(agent)


def write_list(authority, path, number, *serials, days=1):
    now = datetime.now(UTC)
    key = authority_key(authority.folder / "ca.key")
    made = build.make_crl(
        authority.ca, key, [(serial, now) for serial in serials], number=number, lifetime=timedelta(days=days)
    )
    path.write_bytes(build.pem(made))


def test_the_list_is_read_again_and_never_goes_back(authority, tmp_path):
    path = tmp_path / "crl.pem"
    revoked = RevocationList(path, authority.ca)
    revoked.check(7, "a")  # no list yet: nothing is revoked
    write_list(authority, path, 5, 7)
    with pytest.raises(DeployError, match="The certificate of 'a' was revoked on"):
        revoked.check(7, "a")
    revoked.check(8, "b")
    write_list(authority, path, 4)
    with pytest.raises(DeployError, match=r"is older \(number 4\) than the one before \(5\)"):
        revoked.check(8, "b")
    write_list(authority, path, 6)
    revoked.check(7, "a")
    path.unlink()
    with pytest.raises(DeployError, match="has vanished"):
        revoked.check(8, "b")


def test_a_list_of_somebody_else_or_nonsense_lets_nobody_in(authority, tmp_path):
    other = make(tmp_path / "other")
    path = tmp_path / "crl.pem"
    for content in ((other.folder / "public" / "crl.pem").read_bytes(), b"nonsense", b""):
        path.write_bytes(content)
        with pytest.raises(DeployError, match="cannot be trusted"):
            RevocationList(path, authority.ca).check(8, "b")


class Echo(grpc.GenericRpcHandler):
    """Four kinds of call that answer with the caller's name."""

    def service(self, call):
        def one(request, context):
            return peer_of(context).name.encode() + request

        def many(request, context):
            for _ in range(3):
                yield peer_of(context).name.encode()
                self.pause()

        kinds = {
            "/e/uu": grpc.unary_unary_rpc_method_handler(one),
            "/e/us": grpc.unary_stream_rpc_method_handler(many),
            "/e/su": grpc.stream_unary_rpc_method_handler(lambda requests, context: b"".join(requests)),
            "/e/ss": grpc.stream_stream_rpc_method_handler(lambda requests, context: requests),
        }
        return kinds.get(call.method)

    def pause(self):
        return None


@pytest.fixture
def echo(agent):
    handler = Echo()
    server = grpc.server(ThreadPoolExecutor(4), handlers=[handler], interceptors=[PeerCheck(agent, roles={"client"})])
    handler.address = f"localhost:{server.add_secure_port('localhost:0', server_credentials(agent))}"
    server.start()
    yield handler
    server.stop(None).wait()


def test_every_kind_of_call_is_checked(authority, echo, caller):
    with open_channel(echo.address, caller, role="agent") as channel:
        calls = [
            lambda: [channel.unary_unary("/e/uu")(b"!", timeout=10)],
            lambda: list(channel.unary_stream("/e/us")(b"", timeout=10)),
            lambda: [channel.stream_unary("/e/su")(iter([b"a", b"b"]), timeout=10)],
            lambda: list(channel.stream_stream("/e/ss")(iter([b"a", b"b"]), timeout=10)),
        ]
        assert [call() for call in calls] == [[b"hospital-a!"], [b"hospital-a"] * 3, [b"ab"], [b"a", b"b"]]
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary("/e/unknown")(b"", timeout=10)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        write_list(authority, caller.parent / "tls" / "crl.pem", 1000, load_identity(caller).peer.serial)
        for call in calls:
            with pytest.raises(grpc.RpcError) as caught:
                call()
            assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
            assert "The certificate of 'hospital-a' was revoked on" in caught.value.details()


def test_a_stream_that_is_open_ends_with_the_revocation(authority, echo, caller):
    serial = load_identity(caller).peer.serial
    echo.pause = lambda: write_list(authority, caller.parent / "tls" / "crl.pem", 1000, serial)
    with open_channel(echo.address, caller) as channel:
        answers = channel.unary_stream("/e/us")(b"", timeout=10)
        assert next(answers) == b"hospital-a"
        with pytest.raises(grpc.RpcError, match="was revoked on"):
            list(answers)


def test_a_revoked_server_is_not_connected_to(authority, echo, caller, agent):
    write_list(authority, caller / "crl.pem", 1000, load_identity(agent).peer.serial)
    with pytest.raises(DeployError, match="The certificate of 'hospital-a' was revoked on"):
        open_channel(echo.address, caller)


def test_a_server_of_another_role_is_not_connected_to(echo, caller):
    with pytest.raises(DeployError, match="for 'agent', and 'release' was expected"):
        open_channel(echo.address, caller, role="release")


def test_a_replaced_authority_is_not_taken_over_by_a_running_server(echo, caller, agent, tmp_path, caplog):
    other = make(tmp_path / "other").home("site", "hospital-a") / "tls"
    for name in ("ca.pem", "cert.pem", "key.pem"):
        (agent / name).write_bytes((other / name).read_bytes())
    with open_channel(echo.address, caller) as channel:
        assert channel.unary_unary("/e/uu")(b"", timeout=10) == b"hospital-a"
    assert "The certificate was not reloaded" in caplog.text


@pytest.mark.parametrize("address", ["", "host", "host:", ":1", "host:0", "host:70000", "::1:5", "h:1x", "h:١"])
def test_addresses_that_are_none(address):
    with pytest.raises(DeployError, match="is no address: write host:port"):
        split_address(address)


def test_addresses():
    assert split_address("a.example.org:443") == ("a.example.org", 443)
    assert split_address("[::1]:9") == ("::1", 9)
