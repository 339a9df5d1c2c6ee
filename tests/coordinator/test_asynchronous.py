"""Buffered asynchronous runs over the in-memory grid: the real loop and the real ClientApp."""

import numpy as np
import pytest
from flwr.app import Message, RecordDict

from coordinator.flight import Flight, Version
from coordinator.mailbox import Mailbox
from privacy.ledger import Ledger
from simulations.memory_grid import MemoryGrid
from tests.federated import adapter, lines, options, run_in_memory
from umbel import wire
from umbel.errors import FederationError, RunError
from umbel.wire import MessageType, TrainOrder


@pytest.fixture
def flat(tiny_root, tmp_path, own_home):
    def make(**changes):
        chosen = {"evaluate__every": 0, "strategy__buffer": 2, "federation__rounds": 4, **changes}
        return options(tiny_root, **chosen) | {"run.directory": str(tmp_path / "runs")}

    return make


def slow(delays):
    """A grid hook: what a node answers is asked for so often in vain before it comes."""

    def hook(grid):
        grid._delay = lambda node, m: delays.get(node, 0) if m.metadata.message_type == "train" else 0

    return hook


def test_a_buffer_of_everybody_is_a_synchronous_run(flat):
    whole = run_in_memory(flat(strategy__buffer=4))
    plain = run_in_memory(flat(run__id="p", strategy__buffer=0))
    np.testing.assert_allclose(adapter(whole), adapter(plain), atol=2e-6)
    for line, other in zip(lines(whole), lines(plain), strict=True):
        assert line["staleness"] == {"mean": 0.0, "max": 0.0}
        assert line["survivors"] == 4
        for key in ("bytes_up", "bytes_down", "examples"):
            assert line[key] == other[key]
        assert line["train_loss"] == pytest.approx(other["train_loss"], abs=1e-4)


def test_late_updates_are_used_and_two_runs_are_bit_identical(flat):
    first = run_in_memory(flat())
    found = lines(first)
    assert [line["round"] for line in found] == [1, 2, 3, 4]
    assert all(line["survivors"] == line["cohort"] == 2 for line in found)
    assert found[0]["staleness"]["max"] == 0
    assert max(line["staleness"]["max"] for line in found) >= 1
    assert all(line["busy"] > 0 for line in found)
    assert found[-1]["train_loss"] < found[0]["train_loss"]
    assert np.array_equal(adapter(first), adapter(run_in_memory(flat(run__id="u"))))


def test_an_update_of_a_client_that_is_late_counts_by_its_staleness(flat):
    """One step by hand: of three updates, one was trained from the adapter before."""
    from client.client_app import app

    seen = []

    def client(message, context):
        reply = app(message, context)
        if message.metadata.message_type == "train":
            order = wire.unpack_train_order(message.content)
            update = wire.unpack_train_reply(reply.content).update.copy()
            seen.append((context.node_config["partition-id"], order.round, order.adapter.copy(), update))
        return reply

    run_in_memory(flat(federation__rounds=3, strategy__buffer=3), client=client)
    adapters = {number: vector for _, number, vector, _ in seen}
    late = [update for _, number, _, update in seen if number == 1][3]
    fresh = [update for _, number, _, update in seen if number == 2][:2]
    weight = 1 / np.sqrt(2)
    expected = (weight * late + fresh[0] + fresh[1]) / (weight + 2)
    np.testing.assert_allclose(adapters[3] - adapters[2], expected, atol=1e-6)


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


@pytest.mark.parametrize("where", ["train", "line", "flight", "checkpoint", "after"])
def test_a_killed_run_resumes_bit_identically(flat, monkeypatch, where):
    whole = adapter(run_in_memory(flat(run__id="whole")))
    count = {"n": 0}

    def bomb(original, at):
        def wrapped(*args, **kwargs):
            count["n"] += 1
            if count["n"] == at:
                raise Killed
            return original(*args, **kwargs)

        return wrapped

    from coordinator import asynchronous
    from coordinator.tracking import Tracker

    with monkeypatch.context() as patch:
        if where == "train":
            patch.setattr(wire, "unpack_train_reply", bomb(wire.unpack_train_reply, 6))
        elif where == "line":
            patch.setattr(Tracker, "round", bomb(Tracker.round, 3))
        elif where == "flight":
            patch.setattr(Flight, "save", bomb(Flight.save, 2))
        elif where == "checkpoint":
            patch.setattr(asynchronous, "save_checkpoint", bomb(asynchronous.save_checkpoint, 2))
        else:
            patch.setattr(Flight, "forget", bomb(Flight.forget, 2))
        with pytest.raises(Killed):
            run_in_memory(flat())
    path = run_in_memory(flat())
    assert np.array_equal(whole, adapter(path))
    assert [line["round"] for line in lines(path)] == [1, 2, 3, 4]
    assert len(list((path / "checkpoint").glob("flight-*"))) == 1


def test_what_is_too_stale_is_dropped_and_counted(flat):
    path = run_in_memory(flat(strategy__max_staleness=0, federation__rounds=5), grid_hook=slow({1: 6}))
    assert all(line["staleness"]["max"] == 0 for line in lines(path))
    reasons = [reason for line in lines(path) for reason in line["reasons"]]
    assert any("max-staleness 0" in reason for reason in reasons)


def test_a_fixed_number_of_clients_is_busy(flat):
    changes = {"federation__cohort": "fixed", "federation__cohort_size": 2, "federation__rounds": 6}
    path = run_in_memory(flat(**changes))
    assert all(line["busy"] <= 2 for line in lines(path))
    assert all(line["survivors"] == 2 for line in lines(path))


def test_silent_and_crashing_clients_do_not_stop_the_run(flat):
    def fault(node, message):
        return {0: "lost", 3: "crash"}.get(node) if message.metadata.message_type == "train" else None

    path = run_in_memory(flat(federation__timeout=0.5), fault=fault)
    found = lines(path)
    assert all(line["survivors"] == 2 for line in found)
    assert sum(line["rejected"] for line in found) >= 2


def test_when_nobody_is_left_the_run_ends_in_one_sentence(flat):
    with pytest.raises(FederationError, match=r"0 of 2 clients.*resume"):
        run_in_memory(flat(), fault=lambda n, m: "crash" if m.metadata.message_type == "train" else None)


def test_fewer_than_the_buffer_are_used_when_nobody_else_can_come(flat):
    def fault(node, message):
        return "crash" if node == 3 and message.metadata.message_type == "train" else None

    path = run_in_memory(flat(strategy__buffer=4, federation__rounds=2), fault=fault)
    assert [line["survivors"] for line in lines(path)] == [3, 3]


def test_quantized_updates_come_late_too(flat):
    path = run_in_memory(flat(strategy__compression="quantize"))
    exact = run_in_memory(flat(run__id="e"))
    assert lines(path)[0]["bytes_up"] < 0.4 * lines(exact)[0]["bytes_up"]
    assert 0 < np.abs(adapter(path) - adapter(exact)).max() < 0.05


def test_example_privacy_books_each_client_at_most_once_a_round(flat):
    private = {
        "privacy__unit": "example",
        "privacy__epsilon": 8.0,
        "privacy__delta": 1e-2,
        "strategy__name": "ffa-lora",
        "federation__rounds": 3,
    }
    path = run_in_memory(flat(**private))
    found = sorted(path.glob("sites/*/ledger.sqlite"))
    assert len(found) == 4
    for ledger_path in found:
        with Ledger.open(ledger_path, create=False) as ledger:
            booked = [entry.round for entry in ledger.entries() if entry.kind == "reserved"]
        assert len(booked) == len(set(booked)) <= 3
    assert all(line["privacy"]["epsilon"] <= 8.0 for line in lines(path))
    assert all("loss" not in line or line["train_loss"] is None for line in lines(path))


def test_flight_remembers_who_is_busy(tmp_path):
    flight = Flight()
    versions = [Version(np.full(3, n, np.float32), {"c.x": np.ones((n, 2), np.float32)}) for n in (1, 2)]
    flight.start("b", 1, versions[0])
    flight.start("a", 1, versions[0])
    flight.start("c", 2, versions[1])
    flight.save(tmp_path, 1)
    again = Flight.load(tmp_path, 1)
    assert list(again.rounds.items()) == [("b", 1), ("a", 1), ("c", 2)]
    np.testing.assert_array_equal(again.versions[2].extras["c.x"], np.ones((2, 2)))
    assert again.land("b") == 1
    assert set(again.versions) == {1, 2}
    again.land("a")
    assert set(again.versions) == {2}
    assert Flight.load(tmp_path, 2).rounds == {}
    Flight().save(tmp_path, 2)
    Flight.forget(tmp_path, 2)
    assert [p.name for p in tmp_path.iterdir()] == ["flight-2.safetensors"]
    assert Flight.load(tmp_path, 2).rounds == {}
    (tmp_path / "flight-2.safetensors").write_bytes(b"nonsense")
    with pytest.raises(RunError, match="asked anew"):
        Flight.load(tmp_path, 2)


def test_a_mailbox_gives_every_order_exactly_one_answer():
    def client(message, context):
        return Message(wire.pack_metrics({"node": float(message.metadata.dst_node_id)}), reply_to=message)

    def fault(node, message):
        return {1: "lost", 2: "twice", 3: "crash"}.get(node)

    grid = MemoryGrid(client, 6, fault=fault, delay=lambda node, m: 2 if node == 0 else 0)
    mail = Mailbox(grid, MessageType.TRAIN, timeout=0.3, poll=0.001)
    for node in range(1, 7):
        mail.send(node, wire.pack_train_order(TrainOrder(1, "h", np.zeros(1, np.float32))), group="1")
    replies = [mail.take() for _ in range(6)]
    assert sorted(reply.node for reply in replies) == [1, 2, 3, 4, 5, 6]
    assert {reply.node for reply in replies if reply.records is None} == {2, 4}
    assert replies[-1].node == 2
    assert "silent" in replies[-1].reason
    assert not mail
    with pytest.raises(LookupError):
        mail.take()
    mail.send(1, RecordDict(), group="2")
    assert len(mail) == 1
