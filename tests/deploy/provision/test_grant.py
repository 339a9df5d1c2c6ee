"""Requests and grants: what is refused, and that any bytes end in one sentence."""

import json
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deploy.provision import Authority, accept_grant, make_request, read_grant, read_request
from privacy.secagg.pinned import pinned_roster
from umbel.errors import DeployError
from umbel.signed import canonical, sign, signing_pem

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
