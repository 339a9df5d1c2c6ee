"""Every method runs in the round loop: two rounds over the in-memory grid end in an adapter that loads."""

import numpy as np
import pytest

from strategies.registry import STRATEGIES
from tests.federated import lines, options, run_in_memory, tensors


@pytest.fixture
def flat(tiny_root, tmp_path, own_home):
    def make(**changes):
        base = options(tiny_root, federation__rounds=2, train__learning_rate=0.05)
        base |= {"run.directory": str(tmp_path / "runs"), "federation.timeout": 20.0}
        return base | {k.replace("__", ".").replace("_", "-"): v for k, v in changes.items()}

    return make


def loads(path, flat):
    """What the run left equals what its own evaluation measured, through the evaluation command's own loader."""
    from coordinator.remeasure import remeasure

    (end,) = lines(path, "end")
    found = remeasure(path, 0, lambda _text: None)["eval"]
    assert found.loss == pytest.approx(end["evaluation"]["eval"]["loss"], abs=1e-4)
    assert found.count == end["evaluation"]["eval"]["count"]
    return end["evaluation"]


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_two_rounds_end_in_an_adapter_that_loads(flat, name):
    path = run_in_memory(flat(strategy__name=name))
    assert [line["survivors"] for line in lines(path)] == [4, 4]
    figures = loads(path, flat)
    (start,) = lines(path, "start")
    # fedsa-lora's global adapter has the B that it began with: what clients learned is at the clients.
    learned = figures["eval"]["loss"] < start["baseline"]["eval"]["loss"] - 1e-4
    assert learned == (name != "fedsa-lora")


def products(path):
    """B A of each layer: where a method takes an SVD, singular vectors may turn where singular values are close."""
    found = tensors(path)
    return {name: found[name.replace("lora_A", "lora_B")] @ found[name] for name in found if "lora_A" in name}


LINEAR = sorted(name for name, cls in STRATEGIES.items() if cls.facts.linear)


@pytest.mark.parametrize("name", LINEAR)
def test_every_linear_method_runs_under_secure_aggregation(flat, name):
    secure = run_in_memory(flat(run__id="s", strategy__name=name, secagg__enabled=True, secagg__clip=5.0))
    plain = run_in_memory(flat(run__id="p", strategy__name=name))
    assert [line["survivors"] for line in lines(secure)] == [4, 4]
    a, b = products(secure), products(plain)
    assert a.keys() == b.keys()
    if name != "fedask":  # what is cut at rank r may swap where the singular values there are close
        assert max(np.abs(a[k] - b[k]).max() for k in a) < 2e-3
    one, other = loads(secure, flat)["eval"]["loss"], loads(plain, flat)["eval"]["loss"]
    assert one == pytest.approx(other, abs=2e-3)


@pytest.mark.parametrize("name", ["fedex-lora", "flexlora"])
def test_visible_noised_factors_are_merged_too(flat, name):
    """Example-level noise lies in the steps; the server's algebra, side terms included, is post-processing."""
    private = {"privacy__unit": "example", "privacy__delta": 1e-2, "privacy__epsilon": 30.0}
    path = run_in_memory(flat(strategy__name=name, **private))
    assert [line["survivors"] for line in lines(path)] == [4, 4]
    assert 0 < lines(path)[1]["privacy"]["epsilon"] <= 30.0
    loads(path, flat)


@pytest.mark.parametrize("name", sorted(n for n, cls in STRATEGIES.items() if not cls.facts.linear))
def test_the_others_are_refused_there(flat, name):
    from umbel.errors import StrategyError

    with pytest.raises(StrategyError, match="secure aggregation"):
        run_in_memory(flat(strategy__name=name, secagg__enabled=True))
