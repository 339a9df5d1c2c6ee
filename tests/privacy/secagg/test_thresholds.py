import math

import pytest

from privacy.secagg.thresholds import Degree, complete_threshold, find_degree, sparse_leak_bits, sparse_loss_bits
from umbel.errors import SecAggError

# Bell et al. 2020: k/t for correctness 2^-20 and secrecy 2^-40; semi-honest, then semi-malicious.
TABLE = [
    (0.05, 0.05, 100, (12, 6), (16, 11)),
    (0.05, 0.05, 500, (28, 16), (44, 31)),
    (0.05, 0.05, 1000, (30, 17), (52, 37)),
    (0.05, 0.05, 10000, (34, 20), (62, 44)),
    (0.1, 0.1, 100, (22, 11), (32, 22)),
    (0.1, 0.1, 500, (42, 24), (82, 57)),
    (0.1, 0.1, 1000, (48, 27), (96, 67)),
    (0.1, 0.1, 10000, (54, 31), (122, 85)),
    (0.2, 0.2, 100, (40, 21), (62, 42)),
    (0.2, 0.2, 500, (88, 48), (220, 150)),
    (0.2, 0.2, 1000, (98, 54), (302, 206)),
    (0.33, 0.1, 100, (42, 32), (54, 44)),
    (0.33, 0.1, 500, (90, 64), (168, 132)),
    (0.33, 0.1, 1000, (102, 72), (218, 171)),
    (0.33, 0.1, 10000, (126, 88), (310, 242)),
]


@pytest.mark.parametrize(("corrupt", "dropout", "n", "honest", "malicious"), TABLE)
def test_the_published_degrees(corrupt, dropout, n, honest, malicious):
    c, d = math.floor(corrupt * n + 1e-9), math.floor(dropout * n + 1e-9)
    assert find_degree(n, c, d, False) == honest
    assert find_degree(n, c, d, True) == malicious


def test_the_largest_cell_of_the_table_is_met_with_fewer_neighbours():
    # The table gives 122/67 -> 500/340 there; 482/328 already meets both bounds, and 340 is the least t of k = 500.
    assert find_degree(10_000, 2000, 2000, False) == (122, 67)
    k, t = find_degree(10_000, 2000, 2000)
    assert k <= 500
    assert sparse_leak_bits(10_000, k, t, 2000, 2000) <= -40
    assert sparse_loss_bits(10_000, k, t, 2000) <= -20
    assert sparse_leak_bits(10_000, 500, 340, 2000, 2000) <= -40 < sparse_leak_bits(10_000, 500, 339, 2000, 2000)


@pytest.mark.parametrize(("n", "corrupt", "t"), [(3, 1, 3), (10, 2, 7), (20, 5, 13), (50, 12, 32)])
def test_complete_thresholds(n, corrupt, t):
    assert complete_threshold(n, corrupt) == t
    assert 2 * t > n + corrupt >= 2 * (t - 1)


def test_found_degrees_meet_both_bounds_and_one_share_less_does_not():
    for n in (120, 300, 777):
        found = find_degree(n, n // 10, n // 20)
        assert isinstance(found, Degree)
        assert sparse_leak_bits(n, *found, n // 10, n // 20) <= -40
        assert sparse_loss_bits(n, *found, n // 20) <= -20
        assert sparse_leak_bits(n, found.k, found.threshold - 1, n // 10, n // 20) > -40


def test_an_impossible_cohort_is_refused_with_the_way_out():
    with pytest.raises(SecAggError, match="complete"):
        find_degree(100, 60, 30)
