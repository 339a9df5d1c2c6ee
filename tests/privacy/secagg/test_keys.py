import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from privacy.secagg.keys import AgreementKey, derive, seal, unseal
from umbel.errors import ProtocolViolation


def test_rfc_7748_section_6_1():
    a = AgreementKey(bytes.fromhex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a"))
    b = AgreementKey(bytes.fromhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb"))
    assert a.public.hex() == "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"
    assert b.public.hex() == "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"
    shared = "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742"
    assert a.shared(b.public).hex() == b.shared(a.public).hex() == shared


def test_rfc_5869_case_1():
    # The primitive beneath `derive`; case 1 has a salt and info of its own.
    kdf = HKDF(hashes.SHA256(), 42, bytes(range(13)), bytes(range(0xF0, 0xFA)))
    expected = "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"
    assert kdf.derive(b"\x0b" * 22).hex() == expected


def test_derive_is_hkdf_with_label_and_length_prefixed_parts():
    info = b"umbel-secagg/label" + (2).to_bytes(4, "big") + b"ab" + (1).to_bytes(4, "big") + b"c"
    assert derive(b"secret", b"salt", "label", b"ab", b"c") == HKDF(hashes.SHA256(), 32, b"salt", info).derive(
        b"secret"
    )
    assert derive(b"secret", b"salt", "label", b"a", b"bc") != derive(b"secret", b"salt", "label", b"ab", b"c")


# Points of order 1, 2, 4 and 8 on the curve or its twist, and their non-canonical forms.
LOW_ORDER = [
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0100000000000000000000000000000000000000000000000000000000000000",
    "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
    "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
]


@pytest.mark.parametrize("point", LOW_ORDER)
def test_points_of_low_order_are_refused(point):
    with pytest.raises(ProtocolViolation) as refused:
        AgreementKey().shared(bytes.fromhex(point))
    assert refused.value.reason == "key"


def test_sealing_is_bound():
    key = bytes(range(32))
    sealed = seal(key, b"plain", b"bound")
    assert unseal(key, sealed, b"bound") == b"plain"
    assert seal(key, b"plain", b"bound") != sealed
    assert unseal(key, sealed, b"other") is None
    assert unseal(bytes(32), sealed, b"bound") is None
    assert unseal(key, sealed[:20], b"bound") is None
    for place in range(len(sealed)):
        changed = bytearray(sealed)
        changed[place] ^= 1
        assert unseal(key, bytes(changed), b"bound") is None


def test_private_keys_stay_out_of_repr():
    key = AgreementKey()
    assert key.private.hex() not in repr(key)
    assert AgreementKey(key.private).public == key.public
