"""Each decoder on bytes that nobody sent: a value or one sentence, and no more memory than it declares.

Random bytes, and messages that are accepted, cut, with bits flipped, spliced, grown, or with numbers overwritten where
a length may stand. ``make fuzz`` goes further with coverage to guide it.
"""

import tracemalloc

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.target import feed
from tests.fuzz.targets import TARGETS

pytestmark = pytest.mark.timeout(120)  # a decoder that hangs
FEW = settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None)
NAMES = sorted(TARGETS)
LONGEST = 1 << 14
"""Bytes of an input here, which most decoders' own limits exceed."""
LIES = st.sampled_from(
    [0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 1 << 31, (1 << 32) - 1, 1 << 40, (1 << 63) - 1, (1 << 64) - 1]
)

ODD = (b"9" * 30, b"1e999", b"NaN", b"-1", b"\\ud800", b"\x00", b"null", b'"', b"\n", b"../", b"true", b"0.5")
"""What text formats allow where our documents have something else."""


@st.composite
def damaged(draw, seeds):
    """An accepted message with up to three kinds of damage."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for kind in draw(
        st.lists(st.sampled_from(["cut", "flip", "lie", "splice", "grow", "nest", "odd"]), min_size=1, max_size=3)
    ):
        place = draw(st.integers(0, len(data)))
        if kind == "cut":
            del data[place : place + draw(st.integers(1, max(1, len(data))))]
        elif kind == "flip" and place < len(data):
            data[place] ^= 1 << draw(st.integers(0, 7))
        elif kind == "lie":
            width, order = draw(st.sampled_from([1, 2, 4, 8])), draw(st.sampled_from(["big", "little"]))
            value = draw(LIES) & ((1 << 8 * width) - 1)
            data[place : place + width] = value.to_bytes(width, order)
        elif kind == "splice":
            other = draw(st.sampled_from(seeds))
            data[place:] = other[draw(st.integers(0, len(other))) :]
        elif kind == "grow":
            piece = bytes(data[place : place + draw(st.integers(1, 16))])
            data[place:place] = piece * draw(st.integers(1, 64))
        elif kind == "nest":
            data[place:place] = draw(st.sampled_from([b"[", b'{"a":', b"(", b"\xff"])) * draw(st.integers(1, 2000))
        elif kind == "odd":
            data[place:place] = draw(st.sampled_from(ODD))
    return bytes(data[:LONGEST])


def allocated(target, data):
    """Bytes at the peak of reading ``data``."""
    tracemalloc.start()
    try:
        feed(target, data)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", NAMES)
def test_its_own_messages_are_accepted(name):
    target = TARGETS[name]
    for seed in target.seeds:
        assert feed(target, seed)


@pytest.mark.parametrize("name", NAMES)
def test_every_message_cut_short_is_a_value_or_a_sentence(name):
    target = TARGETS[name]
    for seed in target.seeds:
        for end in range(0, len(seed), max(1, len(seed) // 40)):
            feed(target, seed[:end])


@pytest.mark.parametrize("name", NAMES)
def test_any_bytes_are_a_value_or_a_sentence(name):
    target = TARGETS[name]

    @FEW
    @given(st.binary(max_size=300))
    def run(data):
        feed(target, data)

    run()


@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_message_is_a_value_or_a_sentence_within_its_memory(name):
    target = TARGETS[name]

    @FEW
    @given(damaged(list(target.seeds)))
    def run(data):
        assert allocated(target, data) <= target.base + target.ratio * len(data)

    run()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "deep", [b"[" * 100_000, b'{"a":' * 50_000, b"a = " + b"[" * 50_000, b"a." * 3000 + b"a = 1", b"\xff" * 99]
)
def test_nothing_nests_without_end(name, deep):
    feed(TARGETS[name], deep)
