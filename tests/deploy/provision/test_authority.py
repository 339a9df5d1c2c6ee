import json
import stat
import subprocess
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID

from deploy.provision import Authority, accept_grant, make_request, read_grant, read_request
from privacy.secagg.agreement import site_id
from privacy.secagg.identity import Roster
from privacy.secagg.pinned import pinned_identity, pinned_roster
from tests.federation import make
from umbel.cli.main import main
from umbel.errors import DeployError
from umbel.signers import pinned_signers
from umbel.tls import RevocationList, load_identity

PRIVATE = {"ca.key", "authority.key", "identity.key", "key.pem", "supernode", "index.json"}


@pytest.fixture
def authority(tmp_path):
    return make(tmp_path)


def certificate(folder):
    return x509.load_pem_x509_certificate((folder / "cert.pem").read_bytes())


def names(folder):
    value = certificate(folder).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return {str(name.value) for name in value}


def test_an_authority_is_never_replaced(authority):
    before = {path.name: path.read_bytes() for path in authority.folder.rglob("*") if path.is_file()}
    again, made = Authority.init(authority.folder, "demo")
    assert not made
    assert again.fingerprint == authority.fingerprint
    assert {path.name: path.read_bytes() for path in authority.folder.rglob("*") if path.is_file()} == before
    with pytest.raises(DeployError, match="holds the authority of 'demo' and it is never replaced"):
        Authority.init(authority.folder, "other")


@pytest.mark.parametrize("name", ["ca.key", "authority.key", "index.json"])
def test_half_an_authority_is_not_completed(authority, name):
    (authority.folder / name).unlink()
    with pytest.raises(DeployError, match=rf"holds no authority \({name} is missing\).*restore"):
        Authority.init(authority.folder, "demo")
    assert not (authority.folder / name).exists()


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(DeployError, match="holds no authority"):
        Authority.init(tmp_path, "demo")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("days", [0, -1, 826])
def test_lifetimes_are_bounded(tmp_path, days):
    with pytest.raises(DeployError, match="choose 1 to 825"):
        Authority.init(tmp_path / "pki", "demo", days)
    assert not (tmp_path / "pki").exists()


def test_every_private_file_is_private(authority):
    found = {path for path in authority.folder.rglob("*") if path.name in PRIVATE}
    assert {path.name for path in found} == PRIVATE
    assert {stat.S_IMODE(path.stat().st_mode) for path in found} == {0o600}
    assert stat.S_IMODE(authority.folder.stat().st_mode) == 0o700
    for path in authority.folder.rglob("*"):
        if path.is_file() and path not in found:
            assert b"PRIVATE KEY" not in path.read_bytes(), path


def test_a_readable_authority_key_is_refused(authority):
    (authority.folder / "ca.key").chmod(0o644)
    with pytest.raises(DeployError, match=r"ca\.key is open to others \(mode 0644\)"):
        authority.enrol("site", "hospital-b")


def test_certificates_say_what_they_are_for(authority, tmp_path):
    hub = authority.enrol("coordinator", "second", ["hub.example.org", "10.0.0.7"])
    for use in ("superlink", "proxy", "release"):
        assert {"hub.example.org", "10.0.0.7", "second", "localhost", "127.0.0.1", "::1"} == names(hub / use)
        identity = load_identity(hub / use, "server")
        assert (identity.peer.name, identity.peer.role) == ("second", use)
        with pytest.raises(DeployError, match="is not for a client"):
            load_identity(hub / use, "client")
    site = authority.home("site", "hospital-a")
    assert load_identity(site / "tls", "server").peer.role == "agent"
    assert load_identity(site / "client", "client").peer.role == "client"
    made = certificate(site / "client")
    usages = made.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usages) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert not made.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert timedelta(days=29) < made.not_valid_after_utc - datetime.now(UTC) <= timedelta(days=30)


def test_the_node_key_is_what_flower_takes(authority):
    site = authority.home("site", "hospital-a")
    key = load_ssh_private_key((site / "supernode").read_bytes(), None)
    assert key.curve.name == "secp384r1"
    assert (site / "supernode").read_bytes().startswith(b"-----BEGIN OPENSSH PRIVATE KEY-----")
    assert (site / "supernode.pub").read_text().startswith("ecdsa-sha2-nistp384 ")
    assert authority.index().members["hospital-a"].supernode == (site / "supernode.pub").read_text().strip()


def test_the_roster_is_the_form_that_sites_pin(authority):
    authority.enrol("site", "hospital-b")
    for name in ("hospital-a", "hospital-b"):
        folder = authority.home("site", name) / "identity"
        roster, version = pinned_roster(folder)
        assert set(roster.members) == {site_id("hospital-a"), site_id("hospital-b")}
        identity = pinned_identity(folder, name)
        assert roster.verify(identity.id, b"text", identity.sign(b"text"))
        assert Roster.from_json((folder / "roster.json").read_text()).members == roster.members
        assert list(pinned_signers(folder)) == ["hub"]
    assert version == authority.index().version


def test_a_name_a_host_and_a_key_have_one_owner(authority, tmp_path):
    with pytest.raises(DeployError, match="'hospital-a' is enrolled already as a site"):
        authority.enrol("site", "hospital-a")
    authority.enrol("coordinator", "second", ["hub.example.org"])
    with pytest.raises(DeployError, match=r"asks for the host 'hub.example.org', which belongs to 'second'"):
        authority.enrol("site", "thief", ["HUB.example.org"])
    with pytest.raises(DeployError, match="asks for the host 'second', which belongs to 'second'"):
        authority.enrol("site", "thief", ["second"], tmp_path / "thief")
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", authority.home("site", "hospital-a"), copy], check=True)
    with pytest.raises(DeployError, match="A key in the request of 'hospital-c' belongs to 'hospital-a'"):
        authority.sign(read_request(make_request(copy, "site", "hospital-c")))
    assert set(authority.index().members) == {"hub", "hospital-a", "second"}


@pytest.mark.parametrize("host", ["*.example.org", "a b", "", "-a.org", "a" * 254, "1.2.3", "exa_mple.org", "a/b"])
def test_hosts_that_are_none(authority, host):
    with pytest.raises(DeployError, match="is no host"):
        authority.enrol("site", "hospital-b", [host])


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".a", "a b", "a" * 64, "ä"])
def test_names_that_are_none(authority, name):
    with pytest.raises(DeployError, match="is no name"):
        authority.enrol("site", name)


def test_renewal_keeps_keys_and_takes_those_that_are_due(authority):
    site = authority.home("site", "hospital-a")
    before = certificate(site / "tls"), (site / "tls" / "key.pem").read_bytes()
    assert authority.renew() == []
    assert authority.renew(["hospital-a"]) == ["hospital-a"]
    after = certificate(site / "tls")
    assert after.serial_number != before[0].serial_number
    assert after.public_key() == before[0].public_key()
    assert (site / "tls" / "key.pem").read_bytes() == before[1]
    assert authority.renew(within=timedelta(days=31)) == ["hospital-a", "hub"]
    with pytest.raises(DeployError, match="'nobody' is not enrolled"):
        authority.renew(["nobody"])


def test_revocation_reaches_readers_that_are_open(authority):
    site, hub = authority.home("site", "hospital-a"), authority.home("coordinator", "hub")
    reader = load_identity(hub / "release").revoked
    peer = load_identity(site / "client").peer
    reader.check(peer.serial, peer.name)
    version = pinned_roster(hub / "identity")[1]
    authority.revoke("hospital-a")
    with pytest.raises(DeployError, match="The certificate of 'hospital-a' was revoked on"):
        reader.check(peer.serial, peer.name)
    roster, newer = pinned_roster(hub / "identity")
    assert newer == version + 1
    assert site_id("hospital-a") not in roster
    assert not (authority.folder / "grants" / "hospital-a.json").exists()
    with pytest.raises(DeployError, match="'hospital-a' was revoked on"):
        authority.revoke("hospital-a")
    with pytest.raises(DeployError, match="'hospital-a' was revoked on"):
        authority.renew(["hospital-a"])
    # Renewing others keeps it revoked.
    authority.renew(["hub"])
    with pytest.raises(DeployError, match="was revoked on"):
        reader.check(peer.serial, peer.name)


def test_a_revoked_name_enrols_again_with_new_keys_only(authority, tmp_path):
    site = authority.home("site", "hospital-a")
    old = load_identity(site / "client").peer.serial
    authority.revoke("hospital-a")
    with pytest.raises(DeployError, match="was revoked with 'hospital-a': make new keys in an empty folder"):
        authority.sign(read_request(make_request(site, "site", "hospital-a")))
    fresh = authority.enrol("site", "hospital-a", folder=tmp_path / "fresh")
    serials = load_identity(fresh / "client").revoked.serials()
    assert old in serials
    assert load_identity(fresh / "client").peer.serial not in serials
    with pytest.raises(DeployError, match=r"belongs to|was revoked with"):
        authority.sign(read_request(make_request(site, "site", "hospital-b")))


def test_a_revoked_coordinator_signs_no_more(authority):
    site = authority.home("site", "hospital-a")
    authority.revoke("hub")
    assert pinned_signers(site / "identity") == {}


def test_one_broken_folder_keeps_no_other_from_a_revocation(authority, tmp_path):
    authority.enrol("site", "hospital-b")
    authority.enrol("site", "hospital-z")
    broken = authority.home("site", "hospital-b") / "tls" / "key.pem"
    broken.chmod(0o644)
    with pytest.raises(DeployError, match=r"not delivered to every folder \(hospital-b: .*open to others"):
        authority.revoke("hospital-a")
    assert site_id("hospital-a") not in pinned_roster(authority.home("site", "hospital-z") / "identity")[0]


def test_an_outdated_list_lets_nobody_in(authority):
    folder = authority.home("coordinator", "hub") / "release"
    later = datetime.now(UTC) + timedelta(days=61)
    with pytest.raises(DeployError, match=r"is out of date since .*'umbel provision renew' writes it"):
        RevocationList(folder / "crl.pem", authority.ca).check(1, "x", later)


def test_keys_that_never_travel(authority, tmp_path):
    """Request, sign, accept; what is sent holds no secret, and what the authority keeps does not either."""
    site = tmp_path / "site"
    data = make_request(site, "site", "hospital-b", ["b.example.org"])
    grant = authority.sign(read_request(data))
    sent = data + grant.to_bytes() + (authority.folder / "index.json").read_bytes()
    secrets = [path.read_bytes() for path in site.rglob("*") if path.name in PRIVATE]
    assert len(secrets) == 4
    assert b"PRIVATE" not in sent
    assert not any(secret in sent for secret in secrets)
    accept_grant(site, read_grant(grant.to_bytes()), trust=authority.fingerprint)
    assert load_identity(site / "tls", "server").peer.name == "hospital-b"
    assert "b.example.org" in names(site / "tls")
    authority.renew(["hospital-b"])
    accept_grant(site, read_grant((authority.folder / "grants" / "hospital-b.json").read_bytes()))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("keys", {"agent": "-----BEGIN PUBLIC KEY-----\njunk\n-----END PUBLIC KEY-----\n", "client": ""}),
        ("keys", {"agent": "x"}),
        ("keys", {}),
        ("identity", "zz" * 32),
        ("identity", "00"),
    ],
)
def test_a_damaged_key_in_the_index_is_one_sentence_and_changes_nothing(authority, capsys, field, value):
    path = authority.folder / "index.json"
    body = json.loads(path.read_text())
    body["members"]["hospital-a"][field] = value
    path.write_text(json.dumps(body))
    before = {path: path.read_bytes() for path in authority.folder.rglob("*") if path.is_file()}
    assert main(["provision", "renew", "hospital-a", "--pki", str(authority.folder)]) == 85
    assert "index.json is damaged: restore it from the backup." in capsys.readouterr().err
    assert {path: path.read_bytes() for path in authority.folder.rglob("*") if path.is_file()} == before


def test_a_damaged_index_is_said(authority):
    (authority.folder / "index.json").write_text(json.dumps({"format": 1, "federation": "demo"}))
    with pytest.raises(DeployError, match=r"index\.json is damaged: restore it"):
        authority.index()
