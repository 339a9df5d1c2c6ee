import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from privacy.secagg.messages import (
    Confirmation,
    Delivery,
    KeyList,
    Masked,
    Secret,
    Shares,
    Signatures,
    Survivors,
    Unmasking,
)
from tests.secure_messages import ADVERT, CONTEXT, HASH, MESSAGES, OTHER, PAIRS
from umbel.errors import ProtocolViolation

NAMES = [type(message).__name__ for message in MESSAGES]


def read(kind, data, context=CONTEXT):
    return kind.from_bytes(data, context, 8) if kind is Masked else kind.from_bytes(data, context)


@pytest.mark.parametrize("message", MESSAGES, ids=NAMES)
def test_round_trip(message):
    assert read(type(message), message.to_bytes(CONTEXT)) == message


@pytest.mark.parametrize("message", MESSAGES, ids=NAMES)
def test_every_truncation_and_any_tail_is_refused(message):
    data = message.to_bytes(CONTEXT)
    for end in range(len(data)):
        with pytest.raises(ProtocolViolation):
            read(type(message), data[:end])
    with pytest.raises(ProtocolViolation):
        read(type(message), data + b"x")


@pytest.mark.parametrize("message", MESSAGES, ids=NAMES)
def test_another_context_type_or_version_is_refused(message):
    data = message.to_bytes(CONTEXT)
    with pytest.raises(ProtocolViolation) as refused:
        read(type(message), data, bytes(32))
    assert refused.value.reason == "context"
    for place in range(4):
        changed = bytearray(data)
        changed[place] ^= 1
        with pytest.raises(ProtocolViolation) as refused:
            read(type(message), bytes(changed))
        assert refused.value.reason == "malformed"


@pytest.mark.parametrize("kind", [type(message) for message in MESSAGES], ids=NAMES)
@given(data=st.binary(max_size=300))
@example(data=b"")
def test_garbage_is_refused_by_name(kind, data):
    for prefix in (b"", MESSAGES[NAMES.index(kind.__name__)].to_bytes(CONTEXT)[:36]):
        try:
            outcome = read(kind, prefix + data).to_bytes(CONTEXT)
        except ProtocolViolation as refused:
            outcome = refused.reason
        assert outcome in {"malformed", "oversized", "context", "duplicate", prefix + data}


@pytest.mark.parametrize(
    "message",
    [
        KeyList((ADVERT, ADVERT)),
        KeyList((OTHER, ADVERT)),
        Shares(7, HASH, b"k" * 32, b"s" * 64, (PAIRS[0], PAIRS[0])),
        Delivery(7, HASH, PAIRS[::-1]),
        Survivors(HASH, (1, 1)),
        Signatures((Confirmation(1, b"s" * 64), Confirmation(1, b"s" * 64))),
        Unmasking(7, ((1, Secret.SELF_MASK, b"a" * 34), (1, Secret.MASKING_KEY, b"b" * 34))),
    ],
)
def test_ids_twice_or_out_of_order_are_refused(message):
    with pytest.raises(ProtocolViolation) as refused:
        read(type(message), message.to_bytes(CONTEXT))
    assert refused.value.reason == "duplicate"


def test_oversized_messages_are_refused_before_they_are_read():
    with pytest.raises(ProtocolViolation) as refused:
        read(Masked, Masked(7, HASH, memoryview(bytes(9))).to_bytes(CONTEXT))
    assert refused.value.reason == "oversized"
    with pytest.raises(ProtocolViolation) as refused:
        read(Survivors, bytes(1_000_000))
    assert refused.value.reason == "oversized"
    many = Survivors(HASH, (1,)).to_bytes(CONTEXT)[:-12] + (10_001).to_bytes(4, "big") + bytes(8)
    with pytest.raises(ProtocolViolation) as refused:
        read(Survivors, many)
    assert refused.value.reason == "oversized"


def test_an_unknown_kind_of_secret_is_refused():
    data = bytearray(Unmasking(7, ((1, Secret.SELF_MASK, b"a" * 34),)).to_bytes(CONTEXT))
    data[-35] = 2
    with pytest.raises(ProtocolViolation):
        read(Unmasking, bytes(data))
