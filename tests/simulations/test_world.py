"""Devices, their clock, and who would have answered."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulations.clock import VirtualClock
from simulations.devices import FLEETS, PHONE, draw_fleet, generator
from simulations.world import Sent, World, WorldRules
from umbel.errors import ConfigError
from umbel.wire import MessageType

MB = 1 << 20


def sent(count, kind="train", group="1", size=MB, first=1):
    return [Sent(f"{group}-{node}", node, kind, group, size) for node in range(first, first + count)]


def world(count=200, fleet="phones", seed=0, **rules):
    return World(draw_fleet(fleet, count, 0), WorldRules(**rules), seed)


def test_phones_have_the_published_medians():
    fleet = draw_fleet("phones", 4000, 1)
    logs = np.log([device.slowness for device in fleet])
    assert np.median(logs) == pytest.approx(0.0, abs=0.05)
    assert logs.std() == pytest.approx(0.78, abs=0.04)
    assert np.median([device.down_mbps for device in fleet]) == pytest.approx(4.3, rel=0.05)
    assert np.median([device.up_mbps for device in fleet]) == pytest.approx(3.3, rel=0.07)
    assert np.mean([device.presence for device in fleet]) == pytest.approx(0.095, abs=0.01)
    assert np.mean([device.memory_gb <= 3 for device in fleet]) == pytest.approx(0.3, abs=0.03)
    assert {PHONE.name} == {device.kind.name for device in fleet}


def test_a_fleet_is_fixed_by_its_seed_and_mixed_fleets_hold_all_classes():
    assert draw_fleet("mixed", 50, 7) == draw_fleet("mixed", 50, 7)
    assert draw_fleet("mixed", 50, 7) != draw_fleet("mixed", 50, 8)
    assert {device.kind.name for device in draw_fleet("mixed", 500, 7)} == {"phone", "edge-gpu", "hospital"}
    assert all(math.isclose(sum(share for _, share in classes), 1.0) for classes in FLEETS.values())


def test_an_unknown_fleet_is_one_sentence():
    with pytest.raises(ConfigError, match=r"Fleet 'phone' is unknown: did you mean 'phones'\?"):
        draw_fleet("phone", 3, 0)


def test_without_rules_everybody_arrives_and_time_passes():
    made = world(steps=10)
    assert made.play(sent(200)) == {}
    line = made.clock.rounds[0]
    assert (line.asked, line.arrived, line.bytes_down, line.bytes_up) == (200, 200, 200 * MB, 200 * MB)
    # The slowest of 200 phones needs at least its transfer at the median rate, and the clock stands at its end.
    assert made.clock.now == line.seconds > MB * 8e-6 / 4.3


def test_the_same_seed_plays_the_same_and_rounds_differ():
    rules = {"dropout": 0.3, "deadline": 20.0, "presence": True}
    first, again, other = world(seed=5, **rules), world(seed=5, **rules), world(seed=6, **rules)
    one = first.play(sent(200))
    assert one == again.play(sent(200))
    assert one != other.play(sent(200))
    assert {key.partition("-")[2] for key in first.play(sent(200, group="2"))} != {k.partition("-")[2] for k in one}


def test_a_deadline_ends_the_round_and_loses_the_late():
    made = world(steps=20, deadline=8.0)
    lost = made.play(sent(200))
    assert set(lost.values()) == {"the device was later than the deadline"}
    assert 0 < len(lost) < 200
    assert made.clock.now == 8.0


def test_over_selection_takes_the_fastest():
    plain, over = world(steps=20), world(steps=20, over_selection=2.0)
    plain.play(sent(200))
    lost = over.play(sent(200))
    assert len(lost) == 100
    assert over.clock.now < plain.clock.now
    assert over.clock.rounds[0].arrived == 100


def test_dropouts_under_secure_aggregation_spread_over_the_stages():
    made = world(400, dropout=0.5, secure=True)
    alive = {message.node for message in sent(400)} - {int(key.partition("-")[2]) for key in made.play(sent(400))}
    gone = 400 - len(alive)
    assert 15 < gone < 75  # a fifth of a half of 400
    for kind in (
        MessageType.SECAGG_SHARE,
        MessageType.SECAGG_MASK,
        MessageType.SECAGG_CONFIRM,
        MessageType.SECAGG_UNMASK,
    ):
        lost = made.play([Sent(f"{kind}-{node}", node, kind, "1", 100) for node in sorted(alive)])
        alive -= {int(key.rpartition("-")[2]) for key in lost}
        assert len(lost) > 5
    assert 150 < len(alive) < 250


def test_small_devices_refuse_and_descriptions_pass_no_time():
    made = world(memory_gb=3.5)
    assert made.play(sent(200, kind="query.describe", group="0")) == {}
    assert made.clock.now == 0.0
    lost = made.play(sent(200))
    assert len(lost) == sum(device.memory_gb < 3.5 for device in draw_fleet("phones", 200, 0))


def test_phones_are_rarely_there_hospitals_always():
    away = {name: len(world(200, name, presence=True, deadline=60.0).play(sent(200))) for name in FLEETS}
    assert away["phones"] > 100 > 40 > away["hospitals"]


@given(st.lists(st.floats(min_value=0, max_value=1e6), max_size=20))
def test_the_clock_only_goes_forward(steps):
    clock = VirtualClock()
    for number, step in enumerate(steps):
        clock.round(str(number))
        clock.advance(step)
    assert clock.now == pytest.approx(sum(steps))
    assert sum(line.seconds for line in clock.rounds) == pytest.approx(clock.now)


@pytest.mark.parametrize("seconds", [-1.0, math.inf, math.nan])
def test_the_clock_refuses_impossible_steps(seconds):
    with pytest.raises(ConfigError, match="virtual clock"):
        VirtualClock().advance(seconds)


def test_generators_of_different_purposes_differ():
    assert generator("a", 1).random() != generator("a", 2).random()
    assert generator("a", 12).random() != generator("a1", 2).random()
