"""The agent as a process: who may connect, what is too large, what outlives a kill."""

import sqlite3
import threading
import time
from functools import partial

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

import umbel.tls
from client.agent import agent_pb2 as pb
from client.agent.agent_pb2_grpc import SiteAgentStub
from client.agent.audit_log import read_lines, segments
from client.agent.desk import ask_status, budgets, verify_books
from client.agent.remote_site import CHANNEL_OPTIONS, RemoteSite
from mllm.warm import warm_model
from tests.client.agent.houses import AgentProcess, Authority, enrol, flat_options, make_house, policy_for
from umbel.canonical import canonical_json
from umbel.config import RunConfig
from umbel.errors import ConfigError, DeployError, LedgerError, ProtocolViolation, SiteError
from umbel.tls import load_identity
from umbel.tls.channel import channel_credentials
from umbel.wire import MessageType, SecAggStep, TrainOrder, secure_order

DP = {"privacy__unit": "example", "privacy__place": "step"}


def options_for(root, **changes):
    return flat_options(root, **{"run__id": "auto", **changes})


def socket_of(house):
    return f"unix:{house.folder / 'a.sock'}"


def order_for(root, round_number=1, **facts):
    warm = warm_model(RunConfig.from_flat(options_for(root)))
    return TrainOrder(round_number, warm.tuned.spec.hash, warm.initial, **facts)


class TestCallers:
    """The socket is its owner's; the port takes certificates of this authority for couriers that site.toml names."""

    def open(self, house, tls):
        with RemoteSite(house.policy.listen.address, run="1", options={}, tls=tls, wait=10.0, timeout=10.0) as site:
            return site.dry_run()

    def test_a_named_courier_is_answered(self, served, authority, agent_root, tmp_path):
        tls = authority.issue(tmp_path, "courier-a", "client")
        with RemoteSite(served[1].policy.listen.address, run="1", options=options_for(agent_root), tls=tls) as site:
            assert site.dry_run() == ()

    def test_another_name_is_refused(self, served, authority, tmp_path):
        with pytest.raises(SiteError, match="'stranger' may not call here"):
            self.open(served[1], authority.issue(tmp_path, "stranger", "client"))

    def test_another_role_is_refused(self, served, authority, tmp_path):
        with pytest.raises(SiteError, match="only client may call here"):
            self.open(served[1], authority.issue(tmp_path, "courier-a", "release"))

    def test_an_expired_certificate_is_refused_before_anything_is_sent(self, served, authority, tmp_path):
        with pytest.raises(DeployError, match="expired"):
            self.open(served[1], authority.issue(tmp_path, "courier-a", "client", days=-1))

    def test_an_expired_certificate_is_refused_by_the_agent_too(self, served, authority, tmp_path, monkeypatch):
        tls = authority.issue(tmp_path, "courier-a", "client", days=-1)
        with pytest.raises(grpc.RpcError) as caught:
            self.raw(served[1], tls)
        assert caught.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.PERMISSION_DENIED)

    def test_another_authority_is_refused_at_both_ends(self, served, tmp_path):
        tls = Authority("another").issue(tmp_path, "courier-a", "client")
        with pytest.raises(DeployError, match="not issued by the authority pinned here"):
            self.open(served[1], tls)
        (tls / "ca.pem").write_bytes((served[1].folder / "tls" / "ca.pem").read_bytes())
        with pytest.raises(grpc.RpcError) as caught:
            self.raw(served[1], tls)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE

    def test_nobody_speaks_without_tls(self, served):
        with pytest.raises(ConfigError, match="mutual TLS only"):
            self.open(served[1], None)
        with (
            grpc.insecure_channel(served[1].policy.listen.address, options=CHANNEL_OPTIONS) as channel,
            pytest.raises(grpc.RpcError) as caught,
        ):
            SiteAgentStub(channel).DryRun(pb.Run(id="1", options="{}"), timeout=5)
        assert caught.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)

    def test_nobody_calls_without_a_certificate(self, served):
        ca = (served[1].folder / "tls" / "ca.pem").read_bytes()
        credentials = grpc.ssl_channel_credentials(ca)
        with (
            grpc.secure_channel(served[1].policy.listen.address, credentials, options=CHANNEL_OPTIONS) as channel,
            pytest.raises(grpc.RpcError) as caught,
        ):
            SiteAgentStub(channel).DryRun(pb.Run(id="1", options="{}"), timeout=5)
        assert caught.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)

    def test_an_agent_of_another_role_is_not_believed(self, served, authority, tmp_path, monkeypatch):
        from client.agent import remote_site

        monkeypatch.setattr(remote_site, "open_channel", partial(_with_role, umbel.tls.open_channel))
        with pytest.raises(DeployError, match="'release' was expected"):
            self.open(served[1], authority.issue(tmp_path, "courier-a", "client"))

    def test_the_socket_is_its_owner_s_alone(self, served):
        for path in (served[1].folder / "a.sock", served[1].desk):
            assert path.stat().st_mode & 0o077 == 0

    def raw(self, house, tls):
        """A call past the checks that our own courier makes first."""
        key, certificate, ca = ((tls / name).read_bytes() for name in ("key.pem", "cert.pem", "ca.pem"))
        credentials = grpc.ssl_channel_credentials(ca, key, certificate)
        with grpc.secure_channel(house.policy.listen.address, credentials, options=CHANNEL_OPTIONS) as channel:
            SiteAgentStub(channel).DryRun(pb.Run(id="1", options="{}"), timeout=5)


def _with_role(inner, address, tls, *, role, **options):
    assert role == "agent"
    return inner(address, tls, role="release", **options)


class TestService:
    def test_health_is_served_and_reflection_is_not(self, served):
        with grpc.insecure_channel(socket_of(served[1]), options=CHANNEL_OPTIONS) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            for service in ("", "umbel.agent.v1.SiteAgent"):
                answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
                assert answer.status == health_pb2.HealthCheckResponse.SERVING
            reflect = channel.stream_stream("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")
            with pytest.raises(grpc.RpcError) as caught:
                list(reflect(iter([b""]), timeout=10))
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
            with pytest.raises(grpc.RpcError) as caught:  # status is for the site's own people
                channel.unary_unary("/umbel.agent.v1.SiteDesk/Status")(b"", timeout=10)
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED

    def test_the_site_s_own_people_see_what_it_does(self, served):
        status = ask_status(served[1])
        assert status["site"] == "hospital-a"
        assert status["working"] == "nothing"
        assert status["listening"][0] == socket_of(served[1])

    def test_a_message_of_two_gigabytes_is_refused_by_its_head(self, served, agent_root):
        run = pb.Run(id="big", options="{}")
        sent = []

        def parts():
            array = pb.ArrayHead(name="adapter", dtype="float32", shape=[1 << 29])
            yield pb.Part(head=pb.Head(run=run, arrays=[array], train_order=pb.TrainOrder(round=1, pass_number=1)))
            while len(sent) < 2048:
                sent.append(1)
                yield pb.Part(chunk=bytes(1 << 20))

        with (
            grpc.insecure_channel(socket_of(served[1]), options=CHANNEL_OPTIONS) as channel,
            pytest.raises(grpc.RpcError) as caught,
        ):
            list(SiteAgentStub(channel).Train(parts(), timeout=60))
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert "declares 2147483648 bytes and at most 268435456 are taken" in caught.value.details()
        assert len(sent) < 64

    def test_one_message_above_the_limit_never_reaches_the_agent(self, served):
        options = [(k, v) for k, v in CHANNEL_OPTIONS if "send" not in k] + [("grpc.max_send_message_length", -1)]
        with (
            grpc.insecure_channel(socket_of(served[1]), options=options) as channel,
            pytest.raises(grpc.RpcError) as caught,
        ):
            list(SiteAgentStub(channel).Train(iter([pb.Part(chunk=bytes(8 << 20))]), timeout=60))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED

    def test_a_call_without_a_deadline_is_refused(self, served):
        run = pb.Run(id="1", options="{}")
        with grpc.insecure_channel(socket_of(served[1]), options=CHANNEL_OPTIONS) as channel:
            for call in (
                lambda: SiteAgentStub(channel).DryRun(run),
                lambda: list(SiteAgentStub(channel).Train(iter([pb.Part(head=pb.Head(run=run))]))),
            ):
                with pytest.raises(grpc.RpcError) as caught:
                    call()
                assert "without a deadline" in caught.value.details()

    def test_garbage_is_refused_and_the_agent_goes_on(self, served):
        with grpc.insecure_channel(socket_of(served[1]), options=CHANNEL_OPTIONS) as channel:
            for method in ("Train", "SecAgg", "Evaluate"):
                call = channel.stream_stream(f"/umbel.agent.v1.SiteAgent/{method}")
                for data in (b"", b"\xff" * 50, bytes(1000)):
                    with pytest.raises(grpc.RpcError):
                        list(call(iter([data]), timeout=10))
        assert ask_status(served[1])["working"] == "nothing"

    @pytest.mark.parametrize("run", ["../../etc", "", "a/b", "x" * 65])
    def test_a_run_s_name_leads_nowhere_else(self, served, agent_root, run):
        with (
            RemoteSite(socket_of(served[1]), run=run, options=options_for(agent_root)) as site,
            pytest.raises(Exception, match=r"cannot name a run|names no run"),
        ):
            site.train(order_for(agent_root))
        assert not (served[1].folder.parent / "etc").exists()

    def test_everything_asked_and_left_is_in_the_log(self, served, agent_root):
        with RemoteSite(socket_of(served[1]), run="logged", options=options_for(agent_root, **DP)) as site:
            reply = site.train(order_for(agent_root))
            with pytest.raises(SiteError):
                site.train(order_for(agent_root, amount=7))
        verify_books(served[1])
        mine = [line for line in read_lines(served[1].log) if line.get("run") == "logged"]
        assert [line["kind"] for line in mine] == ["asked", "left", "asked", "refused"]
        left = mine[1]
        import hashlib

        gone = reply.update.tobytes() + canonical_json({"metrics": reply.metrics, "spec_hash": reply.spec_hash})
        assert left["sha256"] == hashlib.sha256(gone).hexdigest()
        assert (left["bytes"], left["coordinator"], left["round"]) == (len(gone), "consortium", 1)
        assert left["metrics"] == reply.metrics
        assert [cost["steps"] for cost in left["cost"]] == [2]
        assert "7 steps" in mine[3]["reason"]
        assert mine[3]["cost"] == []


@pytest.fixture
def house(agent_root, tmp_path_factory):
    def make(**changes):
        made = make_house(tmp_path_factory.mktemp("k"), policy_for(agent_root, **changes))
        enrol([made])
        return made

    return make


@pytest.mark.slow
def test_what_was_paid_sealed_and_logged_outlives_a_kill(house, agent_root):
    """Killed in the middle of a round that is paid for, and in the middle of a secure one."""
    site_house = house(runs__steps=100_000)
    process = AgentProcess(site_house).wait()
    secure = {"secagg__enabled": True, "federation__clients": 3, "federation__minimum": 3}
    try:
        with RemoteSite(socket_of(site_house), run="p", options=options_for(agent_root, **DP)) as site:
            first = site.train(order_for(agent_root))
        with RemoteSite(socket_of(site_house), run="s", options=options_for(agent_root, **secure)) as site:
            site.train(order_for(agent_root, secagg=secure_order("s", 3, 1)))
        long = options_for(agent_root, **DP, train__amount=50_000)
        with RemoteSite(socket_of(site_house), run="long", options=long, timeout=60) as site:
            paid = len(budgets_of(site_house))
            failed = []
            worker = threading.Thread(target=lambda: failed.append(outcome(lambda: site.train(order_for(agent_root)))))
            worker.start()
            deadline = time.monotonic() + 60
            while len(budgets_of(site_house)) == paid and time.monotonic() < deadline:
                time.sleep(0.05)
            spent = budgets_of(site_house)
            assert len(spent) == paid + 1
            process.kill()
            worker.join(60)
            assert isinstance(failed[0], SiteError)
        assert "cannot be reached" in str(failed[0]) or "failed" in str(failed[0])
        verify_after_kill(site_house)
        process = AgentProcess(site_house).wait()
        verify_books(site_house)
        assert budgets_of(site_house)[: len(spent)] == spent
        with RemoteSite(socket_of(site_house), run="p", options=options_for(agent_root, **DP)) as site:
            np.testing.assert_array_equal(site.train(order_for(agent_root)).update, first.update)
        assert budgets_of(site_house) == spent
        with (
            RemoteSite(socket_of(site_house), run="s", options=options_for(agent_root, **secure)) as site,
            pytest.raises(ProtocolViolation, match="no KEY_LIST"),
        ):
            site.secagg(MessageType.SECAGG_SHARE, SecAggStep(1, b"no key list"))
    finally:
        process.kill()


def budgets_of(site_house):
    from privacy.ledger import Ledger

    with Ledger.open(site_house.ledger, create=False) as ledger:
        return [entry for entry in ledger.entries() if entry.kind == "reserved"]


def outcome(work):
    try:
        return work()
    except Exception as error:
        return error


def verify_after_kill(site_house):
    """Whatever stands in the log after a kill is a chain that the next agent accepts."""
    from client.agent.audit_log import AuditLog

    assert AuditLog(site_house.log, site_house.identity()).head.number > 0


@pytest.mark.slow
def test_a_caller_who_goes_away_ends_what_is_not_paid_for(house, agent_root):
    from client.agent.server import AgentServer

    site_house = house(runs__steps=1_000_000)
    with AgentServer(site_house):
        long = options_for(agent_root, train__amount=1_000_000)
        with (
            RemoteSite(socket_of(site_house), run="1", options=long, timeout=3.0) as site,
            pytest.raises(SiteError, match=r"did not answer within 3 s"),
        ):
            site.train(order_for(agent_root))
        deadline = time.monotonic() + 20
        while ask_status(site_house)["working"] != "nothing" and time.monotonic() < deadline:
            time.sleep(0.1)
        assert ask_status(site_house)["working"] == "nothing"
    refused = [line for line in read_lines(site_house.log) if line["kind"] == "refused"]
    assert "was ended" in refused[-1]["reason"]
    assert not [line for line in read_lines(site_house.log) if line["kind"] == "left" and line["action"] == "train"]


def test_one_agent_a_site(house):
    from client.agent.server import AgentServer

    site_house = house()
    with AgentServer(site_house), pytest.raises(SiteError, match="Another agent already serves"):
        AgentServer(site_house)


def test_an_agent_refuses_to_start_on_changed_books(house):
    from client.agent.agent import Agent

    site_house = house()
    Agent(site_house).close()
    Agent(site_house).close()
    path = segments(site_house.log)[0]
    good = path.read_bytes()
    path.write_bytes(good.replace(b"started", b"stopped", 1))
    with pytest.raises(SiteError, match="signature"):
        Agent(site_house)
    path.write_bytes(good)
    ledger = site_house.ledger.read_bytes()
    for name in ("ledger.sqlite", "ledger.sqlite-wal", "ledger.sqlite-shm"):
        (site_house.state / name).unlink(missing_ok=True)
    with pytest.raises(LedgerError, match=r"ledger|Ledger"):
        Agent(site_house)
    from privacy.ledger import Ledger

    Ledger.open(site_house.ledger).close()
    with pytest.raises(LedgerError, match="put back to an older copy or replaced"):
        Agent(site_house)
    with pytest.raises(LedgerError, match="put back to an older copy or replaced"):
        verify_books(site_house)
    assert ledger
    assert budgets(site_house) == []


def test_a_ledger_edited_by_hand_stops_the_round(house, agent_root):
    from client.agent.server import AgentServer

    site_house = house()
    with AgentServer(site_house):
        by_hand(site_house.ledger, "20.0", "90.0")
        with (
            RemoteSite(socket_of(site_house), run="1", options=options_for(agent_root)) as site,
            pytest.raises(LedgerError, match="altered or damaged"),
        ):
            site.train(order_for(agent_root))
        by_hand(site_house.ledger, "90.0", "20.0")
    verify_books(site_house)
    assert [line["kind"] for line in read_lines(site_house.log)][1:3] == ["asked", "refused"]


def by_hand(path, before, after):
    """What somebody with the file does: the ledger's own triggers do not hold them."""
    with sqlite3.connect(path) as connection:
        triggers = connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
        for name, _ in triggers:
            connection.execute(f"DROP TRIGGER {name}")
        connection.execute("UPDATE line SET body = replace(body, ?, ?)", (before, after))
        for _, sql in triggers:
            connection.execute(sql)


def test_identity_files_are_read_with_their_certificates(authority, tmp_path):
    tls = authority.issue(tmp_path, "courier-a", "client")
    assert channel_credentials(load_identity(tls, "client")) is not None
