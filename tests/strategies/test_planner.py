import json

import numpy as np
import pytest
from typer.testing import CliRunner

from strategies.client_round import ClientRound
from strategies.planner import buffer, plan, plan_warnings, quantizer
from strategies.registry import STRATEGIES
from umbel.cli.strategies import app
from umbel.config import RunConfig
from umbel.errors import StrategyError

PLAIN = {"strategy.name": "fedit", "privacy.unit": "none", "secagg.enabled": False}


def config(**flat):
    return RunConfig.from_flat(PLAIN | {key.replace("__", ".").replace("_", "-"): value for key, value in flat.items()})


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_every_method_plans_by_itself_and_runs(bench, name):
    strategy = plan(config(strategy__name=name, lora__rank=3))
    assert strategy.name == name
    new, _, _ = bench.round(strategy, bench.case(0, clients=3))
    assert np.isfinite(new.adapter).all()


REFUSED = [
    ({"strategy__name": "flexlora", "secagg__enabled": True}, "secure aggregation hides"),
    ({"strategy__name": "hetlora", "privacy__unit": "client", "privacy__place": "secagg"}, "secure aggregation hides"),
    ({"strategy__name": "flora", "privacy__unit": "example"}, "stacks noisy factors"),
    (
        {"strategy__name": "fedex-lora", "privacy__unit": "client", "privacy__place": "coordinator"},
        "trusted coordinator",
    ),
    ({"strategy__name": "fedask", "privacy__unit": "client", "privacy__place": "update"}, "two sketches"),
    ({"strategy__name": "lora-fair", "strategy__ranks": "mixed"}, "different ranks"),
    ({"strategy__name": "fed-sb", "strategy__ranks": "mixed"}, "different ranks"),
    ({"strategy__robust": "krum", "secagg__enabled": True}, "Krum compares single updates"),
    ({"strategy__robust": "median", "strategy__name": "flora"}, "one mean"),
    ({"strategy__robust": "median", "strategy__parts": True}, "look corrupt"),
    ({"strategy__robust": "krum", "federation__clients": 4}, "needs at least"),
    ({"strategy__robust": "bulyan", "strategy__groups": 5, "secagg__enabled": True}, "needs at least"),
    ({"strategy__groups": 3}, "none is chosen"),
    ({"strategy__groups": 8, "strategy__robust": "median", "secagg__enabled": True}, "cannot form 8 groups"),
    (
        {
            "strategy__groups": 3,
            "strategy__robust": "median",
            "secagg__enabled": True,
            "privacy__unit": "client",
            "privacy__place": "secagg",
        },
        "does not book",
    ),
    ({"strategy__name": "fedsvd", "strategy__server_optimizer": "fedadam"}, "fixed coordinates"),
    ({"strategy__regulariser": "scaffold"}, "plain SGD"),
    ({"strategy__regulariser": "scaffold", "strategy__name": "rolora", "train__optimizer": "sgd"}, "same trained"),
    ({"strategy__regulariser": "scaffold", "strategy__robust": "median", "train__optimizer": "sgd"}, "not both"),
    ({"strategy__compression": "quantize", "secagg__enabled": True}, "rounds values itself"),
    ({"strategy__compression": "sketch", "strategy__name": "flexlora"}, "multiplies uploads"),
    ({"strategy__error_feedback": True}, "no compression"),
    (
        {"strategy__compression": "sparsify", "strategy__error_feedback": True, "strategy__robust": "median"},
        "for an attack",
    ),
    ({"strategy__parts": True, "privacy__unit": "example"}, "exact zero"),
    ({"strategy__parts": True, "train__weight_decay": 0.1}, "exact zero"),
    ({"strategy__parts": True, "strategy__name": "fedask"}, "one by one"),
    ({"strategy__buffer": 4, "strategy__name": "rolora"}, "older adapter"),
    ({"strategy__buffer": 4, "secagg__enabled": True}, "share no round"),
    ({"strategy__buffer": 4, "privacy__unit": "client"}, "when they like"),
    ({"strategy__buffer": 4, "strategy__robust": "median"}, "one and the same adapter"),
    (
        {"strategy__buffer": 4, "strategy__regulariser": "scaffold", "train__optimizer": "sgd"},
        "one and the same adapter",
    ),
    ({"strategy__buffer": 4, "strategy__ranks": "mixed"}, "one length"),
    ({"strategy__buffer": 4, "federation__cohort": "poisson"}, "fixed number of clients busy"),
    ({"strategy__buffer": 21}, "counts once a step"),
    ({"strategy__buffer": 1}, "below federation.minimum"),
    ({"strategy__buffer": 4, "strategy__compression": "sketch-quantize"}, "common seed"),
    ({"strategy__compression": "sketch-quantize", "secagg__enabled": True}, "rounds values itself"),
    (
        {"strategy__compression": "quantize", "strategy__error_feedback": True, "strategy__name": "rolora"},
        "other coordinates",
    ),
    (
        {"strategy__compression": "quantize", "strategy__error_feedback": True, "strategy__name": "fedsvd"},
        "other coordinates",
    ),
    ({"strategy__robust": "median", "privacy__unit": "client", "privacy__place": "coordinator"}, "adds its noise to"),
    (
        {"strategy__robust": "median", "strategy__groups": 3, "federation__cohort": "poisson"},
        "too small to be divided",
    ),
    ({"strategy__name": "fedavg"}, "unknown"),
]


@pytest.mark.parametrize(("options", "words"), REFUSED)
def test_what_cannot_work_is_refused_in_one_sentence(options, words):
    with pytest.raises(StrategyError, match=words) as caught:
        plan(config(**options))
    message = str(caught.value)
    assert message.endswith((".", "?"))
    assert ". " not in message
    assert "\n" not in message


WORKS = [
    ({"strategy__name": "fedask", "secagg__enabled": True, "strategy__ranks": "mixed"}, "fedask"),
    ({"strategy__name": "ffa-lora", "secagg__enabled": True, "strategy__ranks": "mixed"}, "ffa-lora+padded"),
    ({"strategy__robust": "median", "strategy__groups": 5, "secagg__enabled": True}, "fedit+median-5-groups"),
    ({"strategy__server_optimizer": "fedyogi", "strategy__regulariser": "fedprox"}, "fedit+fedyogi+fedprox"),
    (
        {
            "strategy__name": "ffa-lora",
            "strategy__regulariser": "scaffold",
            "train__optimizer": "sgd",
            "strategy__parts": True,
            "strategy__compression": "sketch",
            "strategy__error_feedback": True,
        },
        "ffa-lora+scaffold+parts+sketch-ef",
    ),
]


@pytest.mark.parametrize(("options", "name"), WORKS)
def test_what_composes_is_composed_and_runs_a_round(bench, options, name):
    strategy = plan(config(lora__rank=3, **options))
    assert strategy.name == name
    case = bench.case(1, clients=5, mixed="mixed" in options.values())
    state = strategy.initial(case.spec, case.adapter)
    from strategies.base import Upload

    uploads, clients = [], bench.clients(strategy, case, state, 1)
    for spec, received, local in clients:
        client = strategy.begin(spec, received, 1, strategy.extras(state, spec, 1))
        assert isinstance(client, ClientRound)
        assert client.trainable
        gradient = {n: np.zeros_like(v) for n, v in spec.views(local).items()}
        client.gradient(gradient, spec.views(local))
        client.after_step(spec.views(local))
        upload = client.finish(local, steps=2, learning_rate=0.1)
        strategy.upload_spec(spec, 1).check(upload)
        assert all(a.dtype == np.float32 for a in client.keep(local).values())
        uploads.append(Upload(upload, 1.0, spec.lora.rank))
    new = bench.aggregate(strategy, case.spec, uploads, state, 1, clients)
    case.spec.check(new.adapter)
    assert not np.array_equal(new.adapter, state.adapter)


def test_private_fedask_freezes_a_and_widens_otherwise(bench):
    private = plan(config(strategy__name="fedask", privacy__unit="example", lora__rank=3))
    assert private.facts.private
    assert not any(".lora_A." in n for n in private.trainable(bench.spec(), 1))
    free = plan(config(strategy__name="fedask", lora__rank=3, federation__clients=6))
    assert free.sketch == 21
    assert plan(config(strategy__name="fedask", strategy__sketch=5)).sketch == 5


def test_warnings_name_the_amplification_and_nothing_when_all_is_well():
    [warning] = plan_warnings(config(privacy__unit="example"))
    assert "two noisy factors" in warning
    assert plan_warnings(config(privacy__unit="example", strategy__name="ffa-lora")) == ()
    assert plan_warnings(config()) == ()
    assert "evaluate.clients" in plan_warnings(config(strategy__name="fedsa-lora"))[0]
    assert plan_warnings(config(strategy__name="fedsa-lora", evaluate__clients=True)) == ()
    grouped = config(strategy__robust="median", strategy__groups=5, federation__weights="examples")
    assert len(plan_warnings(grouped)) == 2
    assert "just enough for median" in plan_warnings(config(strategy__robust="median", strategy__groups=3))[0]
    assert "try 64" in plan_warnings(config(strategy__name="fed-sb"))[0]
    assert "products" in plan_warnings(config(strategy__ranks="mixed"))[0]


def test_quantizer_and_buffer_follow_the_configuration():
    assert quantizer(config()) is None
    assert quantizer(config(strategy__compression="quantize", strategy__bits=4)).bits == 4
    assert buffer(config(), plan(config())) is None
    chosen = config(strategy__buffer=4)
    assert buffer(chosen, plan(chosen), 7).version == 7


def test_the_table_lists_every_method():
    text = CliRunner().invoke(app, []).stdout
    assert all(name in text for name in STRATEGIES)
    rows = json.loads(CliRunner().invoke(app, ["--json"]).stdout)
    assert {row["name"] for row in rows} == set(STRATEGIES)
    assert next(r for r in rows if r["name"] == "fedask")["passes"] == 2
    for row in rows:
        facts = STRATEGIES[row["name"]].facts
        assert (row["linear"], row["exact"], row["private"]) == (facts.linear, facts.exact, facts.private)
