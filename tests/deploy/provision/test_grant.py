"""Requests and grants: what is refused, and that any bytes end in one sentence."""

import json
import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deploy.provision import Authority, accept_grant, make_request, read_grant, read_request
from privacy.secagg.pinned import pinned_roster
from umbel.errors import DeployError
from umbel.signed import canonical, sign, signing_pem, verifying_pem
from umbel.signers import pinned_signers
from umbel.tls.identity import load_identity

MANY = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)


@pytest.fixture(scope="module")
def enrolled(tmp_path_factory):
    """An authority, a site folder whose request it signed, the request and the grant."""
    root = tmp_path_factory.mktemp("grant")
    authority, _ = Authority.init(root / "pki", "demo")
    request = make_request(root / "site", "site", "hospital-a")
    grant = authority.sign(read_request(request))
    return authority, root / "site", request, grant


def test_a_request_made_again_asks_for_the_same_keys(tmp_path):
    first, second = (read_request(make_request(tmp_path, "site", "a")) for _ in range(2))
    assert (first.identity, first.supernode) == (second.identity, second.supernode)
    assert {use: key.public_numbers() for use, key in first.keys.items()} == {
        use: key.public_numbers() for use, key in second.keys.items()
    }


@pytest.mark.parametrize("field", ["name", "identity", "supernode"])
def test_a_request_proves_every_key(enrolled, tmp_path, field):
    body = json.loads(enrolled[2])
    other = json.loads(make_request(tmp_path, "site", "hospital-b"))
    body[field] = other[field]
    with pytest.raises(DeployError, match="does not prove that its sender has the keys"):
        read_request(canonical(body))


def test_a_coordinators_uses_are_not_for_sites(enrolled, tmp_path):
    body = json.loads(make_request(tmp_path, "coordinator", "hub"))
    body["kind"] = "site"
    with pytest.raises(DeployError, match="no signing request"):
        read_request(canonical(body))


def test_an_identity_that_a_site_has_already_is_kept(tmp_path):
    key = Ed25519PrivateKey.generate()
    (tmp_path / "identity").mkdir()
    (tmp_path / "identity" / "identity.key").write_bytes(signing_pem(key))
    (tmp_path / "identity" / "identity.key").chmod(0o600)
    request = read_request(make_request(tmp_path, "site", "a"))
    assert request.identity == key.public_key().public_bytes_raw().hex()


def test_the_first_grant_needs_the_fingerprint(enrolled, tmp_path):
    _, _, _, grant = enrolled
    with pytest.raises(DeployError, match=f"compare the fingerprint {grant.fingerprint}"):
        accept_grant(tmp_path, grant)
    with pytest.raises(DeployError, match="not the one given: do not accept it"):
        accept_grant(tmp_path, grant, trust="0" * 64)
    assert list(tmp_path.iterdir()) == []


def test_a_replaced_authority_is_refused_whatever_the_fingerprint(enrolled, tmp_path):
    authority, site, request, grant = enrolled
    accept_grant(site, grant, trust=authority.fingerprint)
    before = {path: path.read_bytes() for path in site.rglob("*") if path.is_file()}
    impostor, _ = Authority.init(tmp_path / "pki", "demo")
    forged = impostor.sign(read_request(request))
    with pytest.raises(DeployError, match=r"comes from another authority than the one pinned .* never replaced"):
        accept_grant(site, forged, trust=impostor.fingerprint)
    half = replace(forged, authority=grant.authority)
    with pytest.raises(DeployError, match="comes from another authority"):
        accept_grant(site, half, trust=half.fingerprint)
    assert {path: path.read_bytes() for path in site.rglob("*") if path.is_file()} == before


def test_a_grant_for_other_keys_is_refused(enrolled, tmp_path):
    authority, _, _, grant = enrolled
    make_request(tmp_path, "site", "hospital-a")
    with pytest.raises(DeployError, match=r"is not for the key in .* it answers another request"):
        accept_grant(tmp_path, grant, trust=authority.fingerprint)
    assert not (tmp_path / "tls" / "ca.pem").exists()


@pytest.mark.parametrize("field", ["roster", "signers"])
def test_documents_of_somebody_else_are_refused(enrolled, field):
    authority, site, _, grant = enrolled
    key = Ed25519PrivateKey.generate()
    text = getattr(grant, field)
    forged = sign(text.encode(), key, field, 99).decode()
    with pytest.raises(DeployError, match="whom nobody here trusts for it"):
        accept_grant(site, replace(grant, **{f"{field}_sig": forged}), trust=authority.fingerprint)
    with pytest.raises(DeployError, match="does not fit its signature"):
        accept_grant(site, replace(grant, **{field: text + " "}), trust=authority.fingerprint)


def test_an_older_roster_is_refused(enrolled):
    authority, site, _, grant = enrolled
    accept_grant(site, grant, trust=authority.fingerprint)
    authority.enrol("site", "later")
    newer = read_grant((authority.folder / "grants" / "hospital-a.json").read_bytes())
    accept_grant(site, newer)
    assert len(pinned_roster(site / "identity")[0]) == 2
    with pytest.raises(DeployError, match="an old one is not taken back"):
        accept_grant(site, grant)
    assert len(pinned_roster(site / "identity")[0]) == 2


@pytest.fixture
def grown(tmp_path):
    """A site's folder with the current grant of an authority that revoked a coordinator, that grant, and an older."""
    authority, _ = Authority.init(tmp_path / "pki", "demo")
    authority.enrol("coordinator", "co", folder=tmp_path / "co")
    site = tmp_path / "site"
    authority.sign(read_request(make_request(site, "site", "hospital-a")))

    def fetch():
        return read_grant((authority.folder / "grants" / "hospital-a.json").read_bytes())

    old = fetch()
    accept_grant(site, old, trust=authority.fingerprint)
    authority.revoke("co")
    return authority, site, fetch(), old


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def numbers(folder):
    from cryptography import x509

    return {
        x509.load_pem_x509_crl((folder / use / "crl.pem").read_bytes())
        .extensions.get_extension_for_class(x509.CRLNumber)
        .value.crl_number
        for use in ("tls", "client")
    }


@pytest.mark.parametrize("accepted", [False, True])
def test_signers_of_an_older_grant_are_refused_in_a_current_one(grown, accepted):
    _, site, new, old = grown
    if accepted:
        accept_grant(site, new)
        assert pinned_signers(site / "identity") == {}
    before = files(site)
    mixed = replace(new, signers=old.signers, signers_sig=old.signers_sig)
    with pytest.raises(DeployError, match="not taken back" if accepted else "no authority sent together"):
        accept_grant(site, mixed)
    mixed = replace(new, roster=old.roster, roster_sig=old.roster_sig)
    with pytest.raises(DeployError, match="not taken back" if accepted else "no authority sent together"):
        accept_grant(site, mixed)
    assert files(site) == before


def test_an_older_revocation_list_is_refused_and_nothing_is_written(grown):
    _, site, new, old = grown
    accept_grant(site, new)
    before = files(site)
    with pytest.raises(DeployError, match=r"has number \d+ and .*tls/crl\.pem has \d+: an older list would let"):
        accept_grant(site, replace(new, crl=old.crl))
    assert files(site) == before
    accept_grant(site, new)
    assert files(site) == before


def test_a_list_of_nobody_or_of_another_authority_is_refused_before_anything_is_written(grown, tmp_path, monkeypatch):
    _, site, new, _ = grown
    before = files(site)
    other, _ = Authority.init(tmp_path / "other", "demo")
    foreign = (other.folder / "public" / "crl.pem").read_text()
    for text in ("junk", "", foreign, new.crl.replace("A", "B"), new.ca):
        with pytest.raises(DeployError, match="is not one of its authority that is still in force"):
            accept_grant(site, replace(new, crl=text))
    assert files(site) == before
    monkeypatch.setattr("umbel.tls.peer.Peer.require_current", lambda peer, now: None)
    with pytest.raises(DeployError, match="not one of its authority that is still in force"):
        accept_grant(site, new, now=datetime.now(UTC) + timedelta(days=61))
    assert files(site) == before


def test_half_of_a_first_grant_pins_no_authority(enrolled, tmp_path):
    _, _, _, grant = enrolled
    for missing in ("tls/ca.pem", "client/ca.pem", "identity/authority.pub"):
        folder = tmp_path / missing.replace("/", "-")
        for name, text in (("tls/ca.pem", grant.ca), ("client/ca.pem", grant.ca)):
            (folder / name).parent.mkdir(parents=True)
            (folder / name).write_text(text)
        (folder / "identity").mkdir()
        (folder / "identity" / "authority.pub").write_bytes(verifying_pem(bytes.fromhex(grant.authority)))
        (folder / missing).unlink()
        with pytest.raises(DeployError, match="compare the fingerprint"):
            accept_grant(folder, grant)


def test_a_damaged_list_is_replaced(grown):
    _, site, new, _ = grown
    for use in ("tls", "client"):
        (site / use / "crl.pem").write_text("damaged")
    accept_grant(site, new)
    assert len(numbers(site)) == 1


def usable(site):
    """What every reader of a member's folder asks for."""
    for use in ("tls", "client"):
        load_identity(site / use)
    assert pinned_roster(site / "identity")[1] > 0
    pinned_signers(site / "identity")


@pytest.mark.parametrize("plain", [False, True])
def test_a_crash_at_any_point_leaves_a_folder_that_works(grown, monkeypatch, plain):
    """Cut off before every rename in turn, over files as an earlier version left them and over links."""
    _, site, new, _ = grown
    if plain:
        for name in ("roster.json", "roster.sig", "signers.json", "signers.sig"):
            data = (site / "identity" / name).read_bytes()
            (site / "identity" / name).unlink()
            (site / "identity" / name).write_bytes(data)
    rename, left = os.replace, 0

    def cut(source, target):
        nonlocal left
        if not left:
            raise KeyboardInterrupt
        left -= 1
        rename(source, target)

    for steps in range(40):
        left = steps
        monkeypatch.setattr(os, "replace", cut)
        try:
            accept_grant(site, new)
            break
        except KeyboardInterrupt:
            monkeypatch.setattr(os, "replace", rename)
            usable(site)
    monkeypatch.setattr(os, "replace", rename)
    assert steps > 10
    usable(site)
    assert pinned_signers(site / "identity") == {}
    assert len(list((site / "identity").glob("documents-*"))) == 1


@MANY
@given(st.binary(max_size=200))
def test_any_bytes(data):
    for read in (read_request, read_grant):
        with pytest.raises(DeployError) as caught:
            read(data)
        assert "\n" not in str(caught.value)


@MANY
@given(st.data())
def test_any_wrong_part(enrolled, data):
    for raw, read in ((enrolled[2], read_request), (enrolled[3].to_bytes(), read_grant)):
        body = json.loads(raw)
        field = data.draw(st.sampled_from(sorted(body)))
        body[field] = data.draw(values)
        try:
            changed = canonical(body)
        except DeployError:
            continue
        try:
            read(changed)
        except DeployError as error:
            sentence = str(error)
            assert "\n" not in sentence


def test_what_is_too_large_or_too_deep():
    for read in (read_request, read_grant):
        with pytest.raises(DeployError):
            read(b"[" * 100_000)
        with pytest.raises(DeployError):
            read(b" " * (17 << 20))
