import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.secagg import Coordinate, RoundContext, SecAggParameters, broadcast_hash
from privacy.secagg.thresholds import SECURITY_BITS, sparse_leak_bits
from umbel.config.secagg import SecAggConfig
from umbel.errors import SecAggError


@settings(max_examples=40)
@given(st.integers(3, 400), st.sampled_from([0.0, 0.05, 0.1]), st.sampled_from([0.0, 0.1]))
def test_whatever_is_chosen_is_safe(n, corrupt, dropout):
    chosen = SecAggParameters.choose(SecAggConfig(corrupt=corrupt, dropout=dropout), n, 10)
    assert chosen.corrupt >= max(1, corrupt * n - 1e-6)
    assert 2 * chosen.confirmations > n + chosen.corrupt
    assert 3 <= chosen.minimum <= n
    assert (chosen.mode == "complete") == (n <= 200)
    if chosen.mode == "complete":
        assert 2 * chosen.threshold > n + chosen.corrupt
        assert n - int(dropout * n + 1e-9) >= chosen.threshold
    else:
        leak = sparse_leak_bits(chosen.minimum, chosen.k, chosen.threshold, chosen.corrupt, chosen.dropped)
        assert leak <= -SECURITY_BITS


@pytest.mark.parametrize(
    ("config", "n", "way_out"),
    [
        (SecAggConfig(minimum=5), 4, "secagg.minimum"),
        (SecAggConfig(), 2, "invite more"),
        (SecAggConfig(corrupt=0.4, dropout=0.4), 20, "secagg.corrupt or secagg.dropout"),
        (SecAggConfig(corrupt=0.9), 10, "secagg.corrupt"),
        (SecAggConfig(graph="sparse"), 99, 'secagg.graph to "auto"'),
        (SecAggConfig(graph="sparse", corrupt=0.3, dropout=0.3), 150, "secagg"),
        (SecAggConfig(), 10_001, "sample fewer"),
        (SecAggConfig(bits=16), 10_000, "secagg.bits"),
    ],
)
def test_the_impossible_is_refused_with_the_way_out(config, n, way_out):
    if n == 10_000:
        # 3 steps a client is coarse but possible; one client more a sum and no bit is left for its metrics.
        assert SecAggParameters.choose(config, n, 10).scale < 4
        return
    with pytest.raises(SecAggError) as refused:
        SecAggParameters.choose(config, n, 10)
    assert way_out in str(refused.value)
    assert str(refused.value).endswith(".")


@pytest.mark.parametrize(
    "change",
    [
        {"threshold": 1},
        {"threshold": 5},
        {"threshold": 11},
        {"minimum": 2},
        {"minimum": 11},
        {"confirmations": 5},
        {"corrupt": 0},
        {"corrupt": 3},
        {"n": 11},
        {"n": 2},
        {"k": 4},
        {"mode": "sparse"},
    ],
)
def test_unsafe_parameters_do_not_construct(change):
    good = SecAggParameters.choose(SecAggConfig(), 10, 10)
    with pytest.raises(SecAggError):
        replace(good, **change)


@pytest.mark.parametrize("change", [{"threshold": -1}, {"k": 2}, {"k": 1}, {"minimum": -60}, {"corrupt": 5}])
def test_unsafe_sparse_parameters_do_not_construct(change):
    good = SecAggParameters.choose(SecAggConfig(), 300, 10)
    assert good.mode == "sparse"
    name, step = next(iter(change.items()))
    with pytest.raises(SecAggError):
        replace(good, **{name: getattr(good, name) + step})


def test_the_report_names_the_threat_model():
    assert "malicious" in SecAggParameters.choose(SecAggConfig(), 10, 10).threat_model
    assert "2^-40" in SecAggParameters.choose(SecAggConfig(), 300, 10).threat_model


BASE = SecAggParameters.choose(SecAggConfig(), 10, 10)
CONTEXT = RoundContext("run", 1, 0, bytes(32))


@pytest.mark.parametrize(
    "other",
    [
        SecAggParameters.choose(SecAggConfig(), 11, 10),
        SecAggParameters.choose(SecAggConfig(), 10, 11),
        SecAggParameters.choose(SecAggConfig(bits=24), 10, 10),
        SecAggParameters.choose(SecAggConfig(clip=2.0), 10, 10),
        SecAggParameters.choose(SecAggConfig(corrupt=0.2), 10, 10),
        SecAggParameters.choose(SecAggConfig(minimum=7), 10, 10),
        SecAggParameters.choose(SecAggConfig(), 10, 10, max_weight=5),
        SecAggParameters.choose(SecAggConfig(), 10, 10, coordinates=(Coordinate("loss", 5.0),)),
        SecAggParameters.choose(SecAggConfig(), 10, 10, coordinates=(Coordinate("loss", 6.0),)),
        SecAggParameters.choose(SecAggConfig(), 10, 10, rotate=True),
        SecAggParameters.choose(SecAggConfig(), 10, 10, noise_multiplier=1.0),
        SecAggParameters.choose(SecAggConfig(), 10, 10, noise_multiplier=2.0),
        replace(BASE, encoding=replace(BASE.encoding, scale=BASE.scale / 2)),
    ],
)
def test_every_parameter_is_in_the_context(other):
    assert CONTEXT.digest(other) != CONTEXT.digest(BASE) == CONTEXT.digest(replace(BASE))


@pytest.mark.parametrize("change", [{"run": "other"}, {"round": 2}, {"attempt": 1}, {"broadcast": b"\x01" + bytes(31)}])
def test_every_part_of_the_round_is_in_the_context(change):
    assert replace(CONTEXT, **change).digest(BASE) != CONTEXT.digest(BASE)


def test_the_broadcast_hash_covers_adapter_and_configuration():
    import numpy as np

    adapter = np.arange(4, dtype=np.float32)
    base = broadcast_hash(adapter, b"config")
    changed = adapter.copy()
    changed[2] = np.nextafter(changed[2], np.float32(9))
    assert len({base, broadcast_hash(changed, b"config"), broadcast_hash(adapter, b"confih")}) == 3
    assert base == broadcast_hash(adapter.copy(), b"config")


def test_bad_contexts_are_refused():
    for change in ({"broadcast": b""}, {"round": -1}, {"attempt": -1}):
        with pytest.raises(SecAggError):
            replace(CONTEXT, **change)


def test_finer_bits_give_finer_scales():
    scales = [SecAggParameters.choose(SecAggConfig(bits=bits), 20, 10).scale for bits in (16, 20, 24, 32)]
    assert scales == sorted(scales)
    assert math.isclose(scales[1] / scales[0], 16, rel_tol=1e-2)
