"""Secure aggregation over the real apps and the in-memory grid."""

import copy

import numpy as np
import pytest

from tests.federated import adapter, lines, options, run_in_memory, tensors
from umbel.errors import FederationError

CLIENTS = 8


@pytest.fixture
def flat(tiny_root, tmp_path, own_home):
    def make(**changes):
        base = {"federation.clients": CLIENTS, "secagg.enabled": True, "secagg.clip": 5.0, "federation.rounds": 2}
        changes = {k.replace("__", ".").replace("_", "-"): v for k, v in changes.items()}
        return options(tiny_root) | {"run.directory": str(tmp_path / "runs")} | base | changes

    return make


def test_the_secure_sum_is_the_plain_one_within_the_quantization_error(flat):
    one = {"federation__rounds": 1}
    secure = run_in_memory(flat(run__id="secure", **one))
    plain = run_in_memory(flat(run__id="plain", secagg__enabled=False, **one))
    a, b = adapter(secure), adapter(plain)
    assert np.abs(a - b).max() < 1e-4 < np.abs(b).max()
    (line,) = lines(secure)
    assert line["secagg"]["mode"] == "complete"
    assert [stage["alive"] for stage in line["secagg"]["stages"].values()] == [CLIENTS] * 6
    (other,) = lines(plain)
    assert line["train_loss"] == pytest.approx(other["train_loss"], abs=0.01)
    assert line["examples"] == other["examples"]


STAGES = {
    "train": "train",
    "share": "query.secagg_share",
    "mask": "query.secagg_mask",
    "confirm": "query.secagg_confirm",
    "unmask": "query.secagg_unmask",
}


@pytest.mark.parametrize("stage", list(STAGES))
def test_dropouts_at_every_stage(flat, stage):
    """The survivors' exact sum, which is what the plain collector gives for the same survivors."""

    def fault(node, message):
        return "crash" if message.metadata.message_type == STAGES[stage] and node == 2 else None

    def plain_fault(node, message):
        gone = stage in ("train", "share", "mask")
        return "crash" if message.metadata.message_type == "train" and node == 2 and gone else None

    one = {"federation__rounds": 1}
    secure = run_in_memory(flat(run__id="secure", **one), fault=fault)
    plain = run_in_memory(flat(run__id="plain", secagg__enabled=False, **one), fault=plain_fault)
    assert lines(secure)[0]["survivors"] == lines(plain)[0]["survivors"]
    assert np.abs(adapter(secure) - adapter(plain)).max() < 1e-4


def test_three_clients_die_at_three_stages(flat):
    dead = {(1, STAGES["train"]), (4, STAGES["mask"]), (6, STAGES["unmask"])}

    def fault(node, message):
        return "lost" if (node, message.metadata.message_type) in dead else None

    options = {"federation__rounds": 1, "federation__timeout": 20.0, "secagg__stage-timeout": 3.0}
    secure = run_in_memory(flat(run__id="secure", **options), fault=fault)
    plain = run_in_memory(
        flat(run__id="plain", secagg__enabled=False, **options),
        fault=lambda node, m: "crash" if m.metadata.message_type == "train" and node in (1, 4) else None,
    )
    assert lines(secure)[0]["survivors"] == CLIENTS - 2
    assert np.abs(adapter(secure) - adapter(plain)).max() < 1e-4


def test_too_few_survivors_abort_cleanly_and_the_round_is_repeated(flat):
    seen = {"mask": 0, "train": 0}

    def fault(node, message):
        if message.metadata.message_type == STAGES["mask"]:
            seen["mask"] += 1
            return "crash" if seen["mask"] <= CLIENTS else None
        return None

    path = run_in_memory(flat(federation__rounds=1), fault=fault)
    assert lines(path)[0]["survivors"] == CLIENTS
    whole = run_in_memory(flat(run__id="whole", federation__rounds=1))
    assert np.abs(adapter(path) - adapter(whole)).max() < 1e-4


def test_a_round_that_never_survives_ends_the_run_in_one_sentence(flat):
    def fault(node, message):
        return "crash" if message.metadata.message_type == STAGES["mask"] else None

    with pytest.raises(FederationError, match="0 of 8 clients"):
        run_in_memory(flat(secagg__attempts=2), fault=fault)


def test_late_duplicates_change_nothing(flat):
    path = run_in_memory(flat(federation__rounds=1), fault=lambda node, message: "twice")
    plain = run_in_memory(flat(run__id="plain", secagg__enabled=False, federation__rounds=1))
    assert np.abs(adapter(path) - adapter(plain)).max() < 1e-4


def test_a_coordinator_that_asks_for_a_plain_update_gets_none(flat):
    from client.local_site import LocalSite
    from client.store import MemoryStore
    from mllm.warm import warm_model
    from umbel.config import RunConfig
    from umbel.errors import SiteError
    from umbel.wire import TrainOrder

    config = RunConfig.from_flat(flat())
    warm = warm_model(config)
    site = LocalSite(config, 0, CLIENTS, MemoryStore(), run="1")
    with pytest.raises(SiteError, match="nothing was sent"):
        site.train(TrainOrder(1, warm.tuned.spec.hash, warm.initial))


def test_every_byte_that_a_client_sends_is_a_protocol_message(flat):
    """No record of any reply holds a loss, a count or an update in clear."""
    from client.client_app import app as client_app

    sent = []

    def client(message, context):
        reply = client_app(message, context)
        if message.metadata.message_type != "query.describe":
            sent.append((message.metadata.message_type, copy.deepcopy(reply.content)))
        return reply

    run_in_memory(flat(federation__rounds=1), client=client)
    assert len(sent) == 5 * CLIENTS
    for kind, records in sent:
        assert list(records.metric_records) == []
        assert list(records.config_records) == ["umbel"]
        assert list(records.array_records) == []
        head = dict(records.config_records["umbel"])
        assert set(head) == {"round", "vector", "dtype"}
        assert (head["round"], head["dtype"]) == (1, "uint8")
        assert kind == "train" or kind.startswith("query.secagg_")


def test_two_replies_to_the_same_model_look_unrelated(flat):
    """What leaves is masked afresh: the bytes of the masked vector are close to uniform and never repeat."""
    from client.client_app import app as client_app
    from umbel import wire

    masked = []

    def client(message, context):
        reply = client_app(message, context)
        if message.metadata.message_type == STAGES["mask"] and context.node_config["partition-id"] == 0:
            masked.append(np.frombuffer(wire.unpack_secagg(reply.content).payload, np.uint8))
        return reply

    run_in_memory(flat(run__id="a", federation__rounds=1), client=client)
    run_in_memory(flat(run__id="b", federation__rounds=1), client=client)
    first, second = (m[-8192:] for m in masked)
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.06
    counts = np.bincount(first, minlength=256)
    chi_square = ((counts - counts.mean()) ** 2 / counts.mean()).sum()
    assert chi_square < 255 + 6 * np.sqrt(2 * 255)


@pytest.mark.parametrize("name", [None, "another"])
def test_a_round_that_was_unmasked_is_not_summed_again_over_one_client_less(flat, monkeypatch, name):
    """Killed after the sum and before the checkpoint: the same updates in two sums that differ by one client.

    A coordinator that calls the run by another name the second time gains nothing by it.
    """
    from coordinator import federation, server_app
    from coordinator.collect.secure import SecureCollector

    class Killed(BaseException):
        """Stands for SIGKILL."""

    def killed(*_):
        raise Killed

    one = {"federation__rounds": 1, "federation__minimum": CLIENTS - 1}
    with monkeypatch.context() as patched:
        patched.setattr(federation, "save_checkpoint", killed)
        with pytest.raises(Killed):
            run_in_memory(flat(run__id="r", **one))

    def gone(node, message):
        return "crash" if node == 3 and message.metadata.message_type == "train" else None

    with monkeypatch.context() as patched:
        patched.setattr(server_app, "SecureCollector", lambda *a, run, **k: SecureCollector(*a, run=name or run, **k))
        path = run_in_memory(flat(run__id="r", **one), fault=gone)
    (line,) = lines(path)
    assert line["survivors"] == 0
    assert any("unmasked before" in reason for reason in line["reasons"])
    assert not any(value.any() for name, value in tensors(path).items() if "lora_B" in name)  # nothing was added


def test_a_round_that_was_unmasked_is_summed_again_over_the_same_clients(flat, monkeypatch):
    from coordinator import federation

    class Killed(BaseException):
        """Stands for SIGKILL."""

    def killed(*_):
        raise Killed

    one = {"federation__rounds": 1}
    with monkeypatch.context() as patched:
        patched.setattr(federation, "save_checkpoint", killed)
        with pytest.raises(Killed):
            run_in_memory(flat(run__id="r", **one))
    again, unbroken = run_in_memory(flat(run__id="r", **one)), run_in_memory(flat(run__id="u", **one))
    assert lines(again)[-1]["survivors"] == CLIENTS
    assert np.abs(adapter(again) - adapter(unbroken)).max() < 1e-4


def test_the_same_dropout_is_harmless_in_a_fresh_round(flat):
    def gone(node, message):
        return "crash" if node == 3 and message.metadata.message_type == "train" else None

    one = {"federation__rounds": 1, "federation__minimum": CLIENTS - 1}
    (line,) = lines(run_in_memory(flat(run__id="f", **one), fault=gone))
    assert line["survivors"] == CLIENTS - 1
