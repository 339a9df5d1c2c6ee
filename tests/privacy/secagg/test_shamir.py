import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.secagg import shamir
from umbel.errors import SecAggError

EDGES = [bytes(32), b"\xff" * 32, bytes(range(32))]


@settings(max_examples=60)
@given(st.data())
def test_any_t_shares_recover(data):
    n = data.draw(st.integers(2, 40))
    t = data.draw(st.integers(2, n))
    secrets = data.draw(st.lists(st.binary(min_size=32, max_size=32), min_size=1, max_size=3)) + EDGES
    points = data.draw(st.lists(st.integers(1, 65536), min_size=n, max_size=n, unique=True))
    shares = shamir.split(secrets, points, t)
    chosen = data.draw(st.permutations(range(n)))[:t]
    assert shamir.combine([[row[i] for i in chosen] for row in shares], [points[i] for i in chosen]) == secrets


def test_python_integers_agree():
    points, t = [1, 5, 9, 65536, 300], 4
    secret = bytes(range(100, 132))
    row = shamir.split([secret], points, t)[0][:t]
    values = []
    for share in row:
        low = np.frombuffer(share[:32], "<u2").astype(int)
        values.append(low + 65536 * np.unpackbits(np.frombuffer(share[32:], np.uint8)).astype(int))
    total = np.zeros(16, dtype=object)
    for j in range(t):
        weight = 1
        for m in range(t):
            if m != j:
                weight = weight * points[m] * pow(points[m] - points[j], -1, shamir.PRIME) % shamir.PRIME
        total = total + weight * values[j].astype(object)
    assert np.array(total % shamir.PRIME, dtype="<u2").tobytes() == secret


def test_the_largest_cohort_is_exact():
    secret = b"\xff" * 32
    points = list(range(1, 1001))
    row = shamir.split([secret], points, 700)[0]
    assert shamir.combine([row[300:]], points[300:]) == [secret]


@pytest.mark.parametrize("secret", [bytes(32), b"\xff" * 32])
def test_fewer_shares_are_uniform_whatever_the_secret(secret):
    # The low byte of one share and of a fixed combination of two (t = 3): chi-square, 255 degrees of freedom.
    single, mixed = np.zeros(256), np.zeros(256)
    for _ in range(600):
        a, b, _c = shamir.split([secret], [1, 2, 3], 3)[0]
        x, y = (np.frombuffer(s[:32], "<u2").astype(int) for s in (a, b))
        np.add.at(single, x & 255, 1)
        np.add.at(mixed, (3 * x + 5 * y) % 65537 % 256, 1)
    for counts in (single, mixed):
        mean = counts.sum() / 256
        assert ((counts - mean) ** 2 / mean).sum() < 390  # p about 1e-7


def test_t_minus_one_shares_fit_every_secret():
    a, b, _c = shamir.split([bytes(32)], [1, 2, 3], 3)[0]
    wrong = shamir.split([b"\x01" * 32], [1, 2, 3], 3)[0][2]
    # The third share decides: with another one in its place something else (or nothing of 32 bytes) comes out.
    assert shamir.combine([[a, b, wrong]], [1, 2, 3]) != [bytes(32)]


def test_a_share_out_of_the_field_gives_nothing():
    shares = shamir.split([bytes(32)], [1, 2, 3], 2)[0]
    bad = b"\xff" * 34  # 65535 + 65536 is no field element
    assert shamir.combine([[shares[0], bad]], [1, 2]) == [None]


def test_empty():
    assert shamir.split([], [1, 2], 2) == []
    assert shamir.combine([], [1, 2]) == []


@pytest.mark.parametrize(
    ("secrets", "points", "t"),
    [
        ([bytes(32)], [1, 2, 3], 1),
        ([bytes(32)], [1, 2, 3], 4),
        ([bytes(32)], [1, 1, 3], 2),
        ([bytes(32)], [0, 1, 3], 2),
        ([bytes(32)], [1, 65537], 2),
        ([bytes(31)], [1, 2], 2),
    ],
)
def test_bad_input_is_refused(secrets, points, t):
    with pytest.raises(SecAggError):
        shamir.split(secrets, points, t)


def test_a_short_share_is_refused():
    with pytest.raises(SecAggError, match="34 bytes"):
        shamir.combine([[bytes(34), bytes(33)]], [1, 2])
