"""Who was refused before anything was asked stands in the log, and a flood of them does not fill it."""

import time

import grpc
import pytest

from client.agent import agent_pb2 as pb
from client.agent.agent_pb2_grpc import SiteAgentStub
from client.agent.audit_log import AuditLog, read_lines, verify
from client.agent.remote_site import CHANNEL_OPTIONS, RemoteSite
from client.agent.server import AgentServer
from client.agent.turned_away import TurnedAway
from tests.client.agent.conftest import free_port
from tests.client.agent.houses import enrol, flat_options, make_house, order_for, policy_for
from umbel.errors import SiteError, WireError

ERROR = WireError("No.")


def refused(house):
    return [line for line in read_lines(house.log) if line["kind"] == "refused"]


class TestBound:
    @pytest.fixture
    def made(self, tmp_path):
        house = make_house(tmp_path / "site", policy_for(tmp_path))
        clock = [0.0]
        log = AuditLog(house.log, house.identity())
        return house, clock, TurnedAway(log, most=3, clock=lambda: clock[0])

    def test_a_flood_takes_few_lines_and_one_that_counts(self, made):
        house, clock, door = made
        for _ in range(50):
            door.note({"action": "train"}, ERROR)
        assert len(refused(house)) == 3
        clock[0] = 61.0
        door.note({"action": "train"}, ERROR)
        assert [line.get("count") for line in refused(house)] == [None, None, None, 47, None]
        door.close()
        assert len(refused(house)) == 5
        verify(house.log, house.identity().public)

    def test_the_end_of_the_agent_counts_too(self, made):
        house, _, door = made
        for _ in range(5):
            door.note({"action": "train"}, ERROR)
        door.close()
        assert refused(house)[-1]["count"] == 2

    def test_the_count_is_written_though_nobody_calls_again(self, made):
        house, _, _ = made
        door = TurnedAway(AuditLog(house.log, house.identity()), most=1, seconds=0.3)
        for _ in range(4):
            door.note({"action": "train"}, ERROR)
        deadline = time.monotonic() + 10
        while len(refused(house)) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert refused(house)[-1]["count"] == 3

    def test_a_sentence_is_cut(self, made):
        house, _, door = made
        door.note({"action": "train"}, WireError("x" * 10_000))
        assert len(refused(house)[0]["reason"]) == 300

    def test_a_log_that_cannot_be_written_stops_nobody(self, made, monkeypatch, caplog):
        house, _, door = made
        (house.log / "head.json").write_text("{}")
        door.note({"action": "train"}, ERROR)
        assert "A refusal was not noted" in caplog.text


@pytest.fixture
def site(agent_root, authority, tmp_path_factory):
    folder = tmp_path_factory.mktemp("d")
    authority.issue(folder / "tls", "hospital-a", "agent", server=True)
    listen = {"address": f"localhost:{free_port()}", "tls": "tls"}
    house = make_house(folder, policy_for(agent_root, listen=listen))
    enrol([house])
    with AgentServer(house):
        yield house


def head(**facts):
    return iter([pb.Part(head=pb.Head(**facts))])


NO_ARRAYS = pb.TrainOrder(round=1, pass_number=1)
LARGE = pb.ArrayHead(name="adapter", dtype="float32", shape=[1 << 29])
CALLS = {
    "too large": (
        "train",
        "",
        "bytes and at most",
        lambda stub: list(stub.Train(head(run=pb.Run(id="1"), arrays=[LARGE], train_order=NO_ARRAYS), timeout=20)),
    ),
    "no deadline": ("dry run", "1", "without a deadline", lambda stub: stub.DryRun(pb.Run(id="1", options="{}"))),
    "no deadline of a stream": (
        "train",
        "",
        "without a deadline",
        lambda stub: list(stub.Train(head(run=pb.Run(id="1"), train_order=NO_ARRAYS))),
    ),
    "no adapter": (
        "train",
        "1",
        "carries no adapter",
        lambda stub: list(stub.Train(head(run=pb.Run(id="1"), train_order=NO_ARRAYS), timeout=20)),
    ),
    "bad stage": (
        "secagg",
        "1",
        "of stage 'x'",
        lambda stub: list(
            stub.SecAgg(head(run=pb.Run(id="1"), secagg=pb.SecAggStep(round=1, stage="x")), timeout=20),
        ),
    ),
    "no run": ("describe", "", "names no run", lambda stub: stub.Describe(pb.Run(id=""), timeout=20)),
    "long run": ("ledger", "x" * 128, "names no run", lambda stub: stub.Ledger(pb.Run(id="x" * 999), timeout=20)),
    "bad bundle": (
        "describe",
        "1",
        "is no hash",
        lambda stub: stub.Describe(pb.Run(id="1", bundle=pb.Bundle(hash="zz", code=True)), timeout=20),
    ),
}


def test_every_call_that_is_no_call_has_one_line(site):
    with grpc.insecure_channel(f"unix:{site.folder / 'a.sock'}", options=CHANNEL_OPTIONS) as channel:
        for action, run, said, ask in CALLS.values():
            before = len(refused(site))
            with pytest.raises(grpc.RpcError) as caught:
                ask(SiteAgentStub(channel))
            assert said in caught.value.details()
            lines = refused(site)[before:]
            assert [(line["action"], line["run"], line["error"]) for line in lines] == [(action, run, "WireError")]
            assert lines[0]["reason"] == caught.value.details()
            assert lines[0]["peer"] == "socket of consortium"


@pytest.mark.parametrize(("name", "role"), [("stranger", "client"), ("courier-a", "release")])
def test_a_stranger_has_one_line(site, authority, tmp_path, name, role):
    tls = authority.issue(tmp_path, name, role)
    with (
        RemoteSite(site.policy.listen.address, run="1", options={}, tls=tls, wait=10.0, timeout=10.0) as remote,
        pytest.raises(SiteError, match=r"may (not )?call here"),
    ):
        remote.dry_run()
    assert [(line["action"], line["peer"], line["error"]) for line in refused(site)] == [
        ("connect", name, "DeployError")
    ]


def test_a_call_that_the_agent_refuses_itself_has_one_line_too(site, agent_root):
    flat = flat_options(agent_root, run__id="auto")
    with (
        RemoteSite(f"unix:{site.folder / 'a.sock'}", run="1", options=flat) as remote,
        pytest.raises(SiteError, match="leave the amount out"),
    ):
        remote.train(order_for(agent_root, amount=1))
    assert len(refused(site)) == 1


def test_an_update_with_a_loss_that_is_no_number_does_not_leave(own_root, monkeypatch):
    import math
    from dataclasses import replace

    from client.agent.agent import Agent
    from client.local_site import LocalSite
    from tests.client.agent.houses import call_for

    house = make_house(own_root / "site", policy_for(own_root))
    enrol([house])
    original = LocalSite.train

    def train(self, order):
        reply = original(self, order)
        return replace(reply, metrics={**reply.metrics, "loss": math.nan})

    monkeypatch.setattr(LocalSite, "train", train)
    with pytest.raises(SiteError, match="no finite number"):
        Agent(house).train(call_for(own_root), order_for(own_root))
    assert [line["kind"] for line in read_lines(house.log)] == ["started", "asked", "refused"]
