"""Strategies of two passes over the real apps: plain and secure, with clients that vanish and coordinators that die."""

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.federated import lines, options, run_in_memory
from umbel.errors import FederationError, StrategyError

CLIENTS = 6
SECOND = "query.secagg_share"


@pytest.fixture
def flat(tiny_root, tmp_path, own_home):
    def make(**changes):
        base = options(tiny_root, strategy__name="fedask", federation__rounds=1, federation__clients=CLIENTS)
        base |= {"run.directory": str(tmp_path / "runs"), "federation.timeout": 20.0, "secagg.clip": 5.0}
        return base | {k.replace("__", ".").replace("_", "-"): v for k, v in changes.items()}

    return make


def products(path, scaling=2.0):
    """s B A of every layer: what an adapter does, whichever way its singular vectors point."""
    arrays = load_file(path / "adapter" / "adapter_model.safetensors")
    modules = sorted(name.removesuffix(".lora_A.weight") for name in arrays if name.endswith(".lora_A.weight"))
    return [scaling * arrays[f"{m}.lora_B.weight"] @ arrays[f"{m}.lora_A.weight"] for m in modules]


def distance(a, b):
    return max(np.abs(x - y).max() for x, y in zip(products(a), products(b), strict=True))


def close(a, b, tolerance):
    assert max(np.abs(x).max() for x in products(b)) > 10 * tolerance
    return distance(a, b) < tolerance


def is_pass(message, number):
    from umbel import wire

    return message.metadata.message_type == "train" and wire.unpack_train_order(message.content).pass_number == number


def test_the_sketch_of_a_run_equals_flexloras_svd(flat):
    """At its default width the sketch is wide enough: the same clients give the best rank-r average both ways."""
    sketched = run_in_memory(flat(run__id="a"))
    exact = run_in_memory(flat(run__id="b", strategy__name="flexlora"))
    assert close(sketched, exact, 1e-5)
    (line,) = lines(sketched)
    (other,) = lines(exact)
    assert line["examples"] == other["examples"]
    assert line["train_loss"] == pytest.approx(other["train_loss"])


def test_nothing_is_trained_twice_and_the_second_order_carries_no_adapter(flat):
    from client.client_app import app
    from umbel import wire

    orders = []

    def client(message, context):
        if message.metadata.message_type == "train":
            orders.append(wire.unpack_train_order(message.content))
        return app(message, context)

    run_in_memory(flat(), client=client)
    assert [order.pass_number for order in orders] == [1] * CLIENTS + [2] * CLIENTS
    assert all(order.adapter.size == 0 and order.extras for order in orders if order.pass_number == 2)


def test_the_secure_passes_equal_the_plain_ones(flat):
    secure = run_in_memory(flat(run__id="s", secagg__enabled=True))
    plain = run_in_memory(flat(run__id="p"))
    assert close(secure, plain, 2e-4)
    (line,) = lines(secure)
    names = ["keys", "shares", "masked", "confirmed", "unmasked", "decoded"]
    assert list(line["secagg"]["stages"]) == names + [f"{name} 2" for name in names]
    assert all(stage["alive"] == CLIENTS for stage in line["secagg"]["stages"].values())


def test_a_client_that_vanishes_between_the_passes_is_left_out_of_a_plain_average(flat):
    """The basis comes from all, the average from those who stayed; exact where the basis holds everybody's factors.

    That needs (clients + 1) r <= min(out, in) of every layer, so rank 1 on the tiny model.
    """

    def run(name, fault=None):
        return run_in_memory(flat(run__id=name, lora__rank=1), fault=fault)

    everybody = run("all")
    stayed = run("a", lambda node, m: "crash" if node == 2 and is_pass(m, 2) else None)
    without = run("b", lambda node, m: "crash" if node == 2 and is_pass(m, 1) else None)
    error, apart = distance(stayed, without), distance(everybody, without)
    assert error < apart / 50, (error, apart)
    (line,) = lines(stayed)
    assert line["survivors"] == CLIENTS - 1


def test_too_few_in_the_second_pass_end_the_run_in_one_sentence(flat):
    with pytest.raises(FederationError, match=r"1 of 6 clients and federation\.minimum is 2"):
        run_in_memory(flat(), fault=lambda node, m: "crash" if node > 0 and is_pass(m, 2) else None)


def test_a_secure_round_that_loses_a_client_between_the_passes_changes_nothing(flat):
    """Its two sums would differ by one client; the next round goes on."""
    seen = {"rounds": set()}

    def fault(node, message):
        from umbel import wire

        if node == 2 and is_pass(message, 2):
            number = wire.unpack_train_order(message.content).round
            seen["rounds"].add(number)
            return "crash" if number == 1 else None
        return None

    path = run_in_memory(flat(secagg__enabled=True, federation__rounds=2, secagg__attempts=2), fault=fault)
    first, second = lines(path)
    assert (first["survivors"], second["survivors"]) == (0, CLIENTS)
    (start,) = lines(path, "start")
    assert first["evaluation"]["eval"]["loss"] == pytest.approx(start["baseline"]["eval"]["loss"], abs=1e-9)
    assert second["evaluation"]["eval"]["loss"] < first["evaluation"]["eval"]["loss"]
    assert seen["rounds"] == {1, 2}


def test_a_client_that_vanishes_in_the_first_secure_pass_is_not_asked_again(flat):
    gone = lambda node, m: "crash" if node == 2 and is_pass(m, 1) else None  # noqa: E731
    secure = run_in_memory(flat(run__id="s", secagg__enabled=True), fault=gone)
    plain = run_in_memory(flat(run__id="p"), fault=gone)
    assert close(secure, plain, 2e-4)
    (line,) = lines(secure)
    assert line["survivors"] == CLIENTS - 1


def test_a_second_pass_may_be_repeated_with_fresh_keys(flat):
    count = {"n": 0}

    def fault(node, message):
        if node == 2 and is_pass(message, 2):
            count["n"] += 1
            return "crash" if count["n"] == 1 else None
        return None

    path = run_in_memory(flat(run__id="s", secagg__enabled=True), fault=fault)
    assert count["n"] == 2
    assert lines(path)[0]["survivors"] == CLIENTS
    assert close(path, run_in_memory(flat(run__id="p")), 2e-4)


class Killed(BaseException):
    """Stands for SIGKILL."""


@pytest.mark.parametrize("secure", [False, True])
def test_a_coordinator_killed_between_the_passes_resumes(flat, secure):
    """The clients that are left trained once: their sealed results answer the repeated order."""
    options = {"secagg__enabled": secure, "federation__rounds": 2}
    whole = run_in_memory(flat(run__id="whole", **options))

    def fault(node, message):
        from umbel import wire

        if node == 3 and is_pass(message, 2) and wire.unpack_train_order(message.content).round == 2:
            raise Killed

    with pytest.raises(Killed):
        run_in_memory(flat(**options), fault=fault)
    path = run_in_memory(flat(**options))
    # AdamW magnifies the random rounding of the first round's secure sum in the second.
    assert close(path, whole, 1.3e-3 if secure else 1e-7)
    assert [line["round"] for line in lines(path)] == [1, 2]


def test_a_site_answers_a_repeated_pass_and_refuses_one_that_it_did_not_train_for(flat):
    from client.local_site import LocalSite
    from client.store import MemoryStore
    from mllm.warm import warm_model
    from strategies.planner import plan
    from umbel.config import RunConfig
    from umbel.errors import AdapterError, SiteError
    from umbel.wire import TrainOrder

    config = RunConfig.from_flat(flat())
    warm, strategy = warm_model(config), plan(config)
    spec, store = warm.tuned.spec, MemoryStore()
    state = strategy.initial(spec, warm.initial)
    nothing = np.zeros(0, np.float32)

    def site():
        return LocalSite(config, 0, CLIENTS, store, run="1")

    first = TrainOrder(1, spec.hash, state.adapter)
    middle = strategy.between(spec, site().train(first).update, state, 1, 1)
    second = TrainOrder(1, spec.hash, nothing, extras=strategy.extras(middle, spec, 1), pass_number=2)
    upload = site().train(second)
    assert upload.spec_hash == strategy.pass_spec(spec, 1, 2).hash
    assert np.array_equal(site().train(second).update, upload.update)
    assert np.array_equal(site().train(first).update, site().train(first).update)
    assert np.array_equal(site().train(second).update, upload.update)
    for order in (
        TrainOrder(2, spec.hash, nothing, extras=second.extras, pass_number=2),
        TrainOrder(1, spec.hash, nothing, extras=second.extras, pass_number=3),
    ):
        with pytest.raises(SiteError, match="did not train in that round"):
            site().train(order)
    with pytest.raises(StrategyError, match="lacks Q"):
        site().train(TrainOrder(1, spec.hash, nothing, pass_number=2))
    bad = {name: np.full_like(array, np.nan) for name, array in second.extras.items()}
    with pytest.raises(AdapterError, match="not finite"):
        site().train(TrainOrder(1, spec.hash, nothing, extras=bad, pass_number=2))


def test_a_site_confirms_a_second_sum_over_the_same_clients_only(flat):
    """A coordinator that leaves a client out of the second sum gets no confirmation from anybody."""
    from coordinator.collect import secure as module

    def run():
        return run_in_memory(flat(secagg__enabled=True, secagg__attempts=1, federation__minimum=2))

    class Cheating(module.SecureCollector):
        def collect(self, cohort, broadcast):
            return super().collect(cohort[:-1] if broadcast.pass_number > 1 else cohort, broadcast)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("coordinator.server_app.SecureCollector", Cheating)
        path = run()
    (line,) = lines(path)
    assert line["survivors"] == 0
    assert any("not those of the round's first one" in reason for reason in line["reasons"])


def test_example_level_privacy_pays_once_for_both_passes(flat):
    """The second upload is computed from steps that were noised and booked: post-processing."""
    from privacy.ledger import Ledger
    from privacy.terms import Unit

    private = {"privacy__unit": "example", "privacy__delta": 1e-2, "privacy__epsilon": 30.0}
    spent = {}
    for name in ("fedask", "ffa-lora"):
        path = run_in_memory(flat(run__id=name, strategy__name=name, secagg__enabled=True, **private))
        assert lines(path)[0]["survivors"] == CLIENTS
        with Ledger.open(path / "sites" / "000000" / "ledger.sqlite", create=False) as ledger:
            ((dataset, _),) = ledger.datasets()
            spent[name] = ledger.spent(1e-2, dataset=dataset, unit=Unit.EXAMPLE)
            assert len(ledger.events(dataset=dataset, unit=Unit.EXAMPLE)) == 1
    assert spent["fedask"] == spent["ffa-lora"] > 0


@pytest.mark.parametrize("place", ["coordinator", "secagg", "update"])
def test_noise_on_a_whole_update_is_refused_for_two_uploads(flat, place):
    options = flat(
        privacy__unit="client",
        privacy__place=place,
        privacy__sampler="full",
        privacy__delta=1e-2,
        secagg__enabled=place == "secagg",
    )
    with pytest.raises(StrategyError, match="releases two sketches of one update"):
        run_in_memory(options)
