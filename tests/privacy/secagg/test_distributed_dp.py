import math

import numpy as np
import pytest

from privacy.accounting import epsilon
from privacy.secagg import Encoding, NoisePlan, SecAggParameters
from privacy.secagg.distributed_dp import conditional_round, tail
from privacy.terms import Relation
from umbel.config.secagg import SecAggConfig
from umbel.errors import SecAggError


@pytest.mark.parametrize("mechanism", ["skellam", "discrete-gaussian"])
def test_the_sum_holds_the_promised_noise_when_corrupt_and_dropped_are_gone(mechanism):
    n, length, z = 12, 4000, 1.5
    parameters = SecAggParameters.choose(
        SecAggConfig(bits=24, corrupt=0.2), n, length, noise_multiplier=z, mechanism=mechanism
    )
    encoding = parameters.encoding
    honest = parameters.minimum - parameters.corrupt
    total = encoding.zeros()
    for _ in range(honest):
        total += encoding.encode(np.zeros(length, np.float32), {}, 1, b"s")
    noise, _ = encoding.decode(total, honest, b"s")
    # The variance of a sample variance of m near-normal values is 2 / m: five standard errors.
    ratio = np.mean(noise**2) / (z * parameters.clip) ** 2
    assert abs(ratio - 1) < 5 * math.sqrt(2 / length)
    # One client fewer would not hold it: the test can fail.
    assert abs(ratio * (honest - 1) / honest - 1) > 5 * math.sqrt(2 / length) / 2


def test_the_signal_survives():
    parameters = SecAggParameters.choose(SecAggConfig(clip=1.0), 5, 1000, noise_multiplier=1e-3)
    values = (np.random.default_rng(0).standard_normal(1000) * 0.02).astype(np.float32)
    total = parameters.encoding.zeros()
    for _ in range(5):
        total += parameters.encoding.encode(values, {}, 1, b"s")
    assert np.abs(parameters.encoding.decode(total, 5, b"s")[0] - 5 * values).max() < 0.01


@pytest.mark.parametrize("length", [1, 10, 3000])
def test_conditional_rounding_keeps_the_sensitivity(length):
    values = np.full(length, 1 / math.sqrt(length), dtype=np.float32)
    plan = NoisePlan(1.0, 3, 1)
    for scale in (0.5, 30.0, 5000.0):
        limit = plan.lattice(length, scale).l2(1.0)
        for _ in range(20):
            out = conditional_round(values * np.float32(1 - 1e-6), scale, 1.0)
            assert np.linalg.norm(out.astype(float)) <= limit
            assert np.abs(out - values * scale).max() <= 1.01


def test_an_unclipped_vector_is_refused():
    with pytest.raises(SecAggError, match="clip"):
        conditional_round(np.full(100, 10.0, np.float32), 100.0, 1.0)


def test_four_more_bits_bring_the_cost_near_that_of_the_continuous_gaussian():
    # n = 100, d = 2^20, z = 4, T = 100, delta = 1e-5, both by Renyi divergence: alpha / (2 z^2) for the Gaussian.
    # The published increase falls by 16 for every 2 bits (4.2%, 0.27%, 0.02%); our scale is coarser because a sum
    # wraps with probability 2^-40 only.
    def by_rdp(curve):
        best = math.inf
        for order in range(2, 200):
            cost = 100 * curve(order)
            best = min(best, cost + math.log1p(-1 / order) - (math.log(1e-5) + math.log(order)) / (order - 1))
        return best

    gaussian, increase = by_rdp(lambda order: order / (2 * 16)), {}
    for bits in (16, 20, 24):
        encoding = Encoding.fit(bits, 1 << 20, 100, 1.0, rotate=True, noise=NoisePlan(4.0, 100, 0))
        event = encoding.event(steps=100)

        def skellam(order, event=event):
            first = order * event.l2**2 / (2 * event.variance)
            second = ((2 * order - 1) * event.l2**2 + 6 * event.l1) / (4 * event.variance**2)
            return first + min(second, 3 * event.l1 / (2 * event.variance))

        increase[bits] = by_rdp(skellam) / gaussian - 1
    assert 0 < increase[24] < increase[20] < 0.002 < increase[16] < 0.5
    assert increase[16] / increase[20] == pytest.approx(256, rel=0.2)


def test_epsilon_comes_from_the_accountant_and_replacing_costs_more():
    encoding = SecAggParameters.choose(SecAggConfig(), 20, 1000, noise_multiplier=4.0).encoding
    one, ten = epsilon([encoding.event()], 1e-5), epsilon([encoding.event(steps=10)], 1e-5)
    assert 0.5 < one < ten < 10 * one
    assert epsilon([encoding.event(Relation.REPLACE_ONE)], 1e-5) > one


def test_noise_within_the_tail_bound():
    draws = NoisePlan(1.0, 3, 1).draw(200_000, 1.0, 10.0)
    variance = 100 / 2
    assert np.var(draws) == pytest.approx(variance, rel=0.03)
    assert np.abs(draws).max() < tail(variance, math.log(2 * 200_000) + 20)
    assert tail(variance, 20.0) > math.sqrt(2 * variance * 20.0)


def test_bad_plans_are_refused():
    for options in ((0.0, 3, 1), (math.nan, 3, 1), (math.inf, 3, 1), (1.0, 3, 3), (1.0, 3, -1)):
        with pytest.raises(SecAggError):
            NoisePlan(*options)
    with pytest.raises(SecAggError, match="no noise"):
        Encoding.fit(20, 3, 3, 1.0).event()


def test_noise_that_counts_on_more_survivors_than_are_enforced_is_refused():
    from dataclasses import replace

    good = SecAggParameters.choose(SecAggConfig(), 10, 10, noise_multiplier=1.0)
    bold = replace(good.encoding, noise=NoisePlan(1.0, 9, 1))
    with pytest.raises(SecAggError, match="honest"):
        replace(good, encoding=bold)
