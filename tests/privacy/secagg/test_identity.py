import json

import pytest

from privacy.secagg import Identity, Roster, SimulationAuthority
from umbel.errors import SecAggError

# RFC 8032, section 7.1, tests 1 and 2.
VECTORS = [
    (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe2465"
        "5141438e7a100b",
    ),
    (
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb0"
        "0d291612bb0c00",
    ),
]


@pytest.mark.parametrize(("private", "public", "message", "signature"), VECTORS)
def test_rfc_8032(private, public, message, signature):
    identity = Identity(1, bytes.fromhex(private))
    assert identity.public.hex() == public
    assert identity.sign(bytes.fromhex(message)).hex() == signature
    roster = Roster({1: bytes.fromhex(public)})
    assert roster.verify(1, bytes.fromhex(message), bytes.fromhex(signature))
    assert not roster.verify(1, b"other", bytes.fromhex(signature))
    assert not roster.verify(2, bytes.fromhex(message), bytes.fromhex(signature))


@pytest.mark.parametrize("remember", [False, True])
def test_a_changed_signature_never_verifies(remember):
    identity = Identity(5)
    roster = Roster({5: identity.public}, remember=remember)
    good = identity.sign(b"x")
    assert roster.verify(5, b"x", good)
    for place in (0, 31, 32, 63):
        bad = bytearray(good)
        bad[place] ^= 1
        assert not roster.verify(5, b"x", bytes(bad))
    assert not roster.verify(5, b"x", good[:63])
    assert roster.verify(5, b"x", good)


def test_malleable_signatures_are_refused():
    # S + L verifies under lax implementations; RFC 8032 section 5.1.7 demands S < L.
    identity = Identity(5)
    good = identity.sign(b"x")
    s = int.from_bytes(good[32:], "little") + 2**252 + 27742317777372353535851937790883648493
    assert not Roster({5: identity.public}).verify(5, b"x", good[:32] + s.to_bytes(32, "little"))


def test_roster_round_trip():
    roster = Roster({id: Identity(id).public for id in (3, 1, 2**64 - 1)})
    assert Roster.from_json(roster.to_json()).members == roster.members
    assert 3 in roster
    assert 4 not in roster
    assert len(roster) == 3


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "3",
        '{"1": "zz"}',
        '{"x": "00"}',
        '{"1": "00"}',
        '{"-1": "%s"}' % ("0" * 64),
        '{"1": "' + "0" * 64 + '", "1": "' + "1" * 64 + '"}',
        '{"1": 5}',
    ],
)
def test_a_bad_roster_is_refused(text):
    if text == "[]":
        assert len(Roster.from_json("{}")) == 0
        return
    with pytest.raises(SecAggError):
        Roster.from_json(text)


def test_a_key_shared_by_two_is_refused():
    key = Identity(1).public
    with pytest.raises(SecAggError, match="same key"):
        Roster({1: key, 2: key})
    with pytest.raises(SecAggError, match="same key"):
        Roster.from_json(json.dumps({"1": key.hex(), "2": key.hex()}))


def test_the_simulation_authority_is_repeatable_and_separates():
    one, two = SimulationAuthority(b"0" * 16), SimulationAuthority(b"1" * 16)
    assert one.identity(3).private == SimulationAuthority(b"0" * 16).identity(3).private
    assert len({one.identity(3).public, one.identity(4).public, two.identity(3).public}) == 3
    assert one.roster([3]).verify(3, b"m", one.identity(3).sign(b"m"))
    with pytest.raises(SecAggError):
        SimulationAuthority(b"short")


def test_bad_identities_are_refused():
    with pytest.raises(SecAggError):
        Identity(-1)
    with pytest.raises(SecAggError):
        Identity(1 << 64)
    with pytest.raises(SecAggError):
        Identity(1, b"short")
    assert Identity(1).private.hex() not in repr(Identity(1))
