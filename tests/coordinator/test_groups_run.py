"""Groups and robust rules through the real round loop, over the in-memory grid."""

import numpy as np
import pytest

from coordinator.collect import Collected
from coordinator.collect.grouped import merged
from simulations.attackers import STRENGTH, corrupted, hostile_app, hostile_nodes
from strategies.robust.robust import RULES, assign_groups
from tests.federated import adapter, lines, options, run_in_memory
from umbel.errors import FederationError, StrategyError

CLIENTS = 9


@pytest.fixture
def flat(tiny_root, tmp_path, own_home):
    def make(**changes):
        chosen = {
            "federation__clients": CLIENTS,
            "federation__rounds": 1,
            "evaluate__every": 0,
            "secagg__clip": 5.0,
            **changes,
        }
        return options(tiny_root, **chosen) | {"run.directory": str(tmp_path / "runs")}

    return make


GROUPS = {"strategy__robust": "median", "strategy__groups": 3}


def test_secure_groups_give_the_rule_over_the_plain_group_means(flat):
    plain = run_in_memory(flat(run__id="plain", **GROUPS))
    secure = run_in_memory(flat(run__id="secure", secagg__enabled=True, **GROUPS))
    assert np.abs(adapter(plain) - adapter(secure)).max() < 1e-4 < np.abs(adapter(plain)).max()
    (line,) = lines(secure)
    assert line["survivors"] == CLIENTS
    assert line["secagg"]["groups"] == 3
    assert line["secagg"]["cohort"] == 3
    assert line["secagg"]["stages"]["unmasked"]["alive"] == CLIENTS
    other = lines(plain)[0]
    assert line["examples"] == other["examples"]
    assert line["train_loss"] == pytest.approx(other["train_loss"], abs=0.02)
    whole = run_in_memory(flat(run__id="whole"))
    assert not np.array_equal(adapter(whole), adapter(plain))


@pytest.mark.parametrize("secure", [False, True])
def test_a_group_that_is_lost_is_left_out(flat, secure):
    kind = "query.secagg_mask" if secure else "train"
    changes = {**GROUPS, "strategy__corrupt": 0.0, "secagg__enabled": secure, "secagg__attempts": 1}
    path = run_in_memory(flat(**changes), fault=named_fault(kind))
    (line,) = lines(path)
    assert line["survivors"] == CLIENTS - 3
    if secure:
        assert line["secagg"]["lost"] == 1


def named_fault(kind):
    """All members of the first group crash at one message; names are those that the sites give themselves."""
    from privacy.secagg.simulated import simulated_name

    first = assign_groups([simulated_name(i) for i in range(CLIENTS)], 3, (0, 1))[0]
    dead = {i for i in range(CLIENTS) if simulated_name(i) in first}
    return lambda node, message: "crash" if message.metadata.message_type == kind and node in dead else None


def test_too_few_groups_end_the_run_in_one_sentence(flat):
    with pytest.raises(StrategyError, match="needs at least 3"):
        run_in_memory(flat(**GROUPS), fault=named_fault("train"))


def test_no_groups_at_all_end_the_run_in_one_sentence(flat):
    with pytest.raises(FederationError, match="0 of 9 clients"):
        run_in_memory(flat(**GROUPS), fault=lambda node, m: "crash" if m.metadata.message_type == "train" else None)


def test_merged_groups_conserve_counts():
    def part(n, loss, mean=True):
        return Collected(
            mean=np.full(2, n, np.float32) if mean else None,
            survivors=[f"s{n}{i}" for i in range(n)],
            rejected={"why": 1},
            missing=2,
            metrics={"seen": float(n), "loss": loss},
            bytes_up=10,
            bytes_down=20,
        )

    got = merged([part(1, 4.0), part(3, 0.0), part(2, 9.0, mean=False)])
    assert [u.weight for u in got.uploads] == [1.0, 3.0]
    assert len(got.survivors) == 6
    assert (got.rejected, got.missing, got.bytes_up, got.bytes_down) == ({"why": 3}, 6, 30, 60)
    assert got.metrics["loss"] == pytest.approx((4 + 0 + 18) / 6)
    assert got.mean is None


def test_every_rule_runs_and_withstands_a_hostile_client(flat):
    """The robust result stays near what the honest clients give; the plain mean does not."""
    changes = {"federation__clients": 7, "strategy__corrupt": 1 / 7 - 1e-6}
    app, start = hostile_app({3}, "sign-flip"), initial(flat(**changes))
    honest = adapter(run_in_memory(flat(run__id="h", **changes), fault=without(3))) - start
    plain = adapter(run_in_memory(flat(run__id="p", **changes), client=app)) - start
    for rule in sorted(RULES):
        path = run_in_memory(flat(run__id=rule, strategy__robust=rule, **changes), client=app)
        assert lines(path)[0]["survivors"] == 7
        robust = adapter(path) - start
        assert np.linalg.norm(robust - honest) < 0.8 * np.linalg.norm(plain - honest), rule


def without(node):
    return lambda n, message: "crash" if n == node and message.metadata.message_type == "train" else None


def initial(flat):
    """The untrained adapter: what a run of one round leaves when nobody's update is anything but zero."""
    from mllm.warm import warm_model
    from umbel.config import RunConfig

    warm = warm_model(RunConfig.from_flat(flat))
    views = warm.tuned.spec.views(warm.initial)
    return np.concatenate([views[k].ravel() for k in sorted(views)])


def test_rules_do_not_depend_on_the_order_of_replies(flat):
    from simulations.memory_grid import MemoryGrid

    def backwards(grid):
        pull = MemoryGrid.pull_messages
        grid.pull_messages = lambda ids: list(pull(grid, list(reversed(list(ids)))))

    first = adapter(run_in_memory(flat(strategy__robust="geometric-median")))
    again = adapter(run_in_memory(flat(run__id="u", strategy__robust="geometric-median"), grid_hook=backwards))
    assert np.array_equal(first, again)


def test_a_hostile_site_lies_under_secure_aggregation_too(flat):
    changes = {"federation__clients": 4, "secagg__enabled": True, "secagg__clip": 50.0}
    honest = adapter(run_in_memory(flat(run__id="a", **changes)))
    lied = adapter(run_in_memory(flat(run__id="b", **changes), client=hostile_app({1}, "random")))
    assert np.abs(honest - lied).max() > 1e-3


@pytest.mark.parametrize("attack", sorted(STRENGTH))
def test_attacks_have_the_strength_that_they_claim(attack):
    vector = np.random.default_rng(0).normal(size=500).astype(np.float32)
    lie = corrupted(vector, attack, 7)
    assert np.linalg.norm(lie) == pytest.approx(STRENGTH[attack] * np.linalg.norm(vector), rel=1e-4)
    cosine = float(lie @ vector / np.linalg.norm(lie) / np.linalg.norm(vector))
    assert {"sign-flip": cosine < -0.99, "scale": cosine > 0.99, "random": abs(cosine) < 0.2}[attack]
    assert corrupted(np.zeros(3, np.float32), attack, 1).tolist() == [0.0, 0.0, 0.0]


def test_hostile_nodes_are_a_fixed_share():
    assert len(hostile_nodes(10, 0.2, 0)) == 2
    assert hostile_nodes(10, 0.2, 0) == hostile_nodes(10, 0.2, 0)
    assert hostile_nodes(3, 0.2, 0) == frozenset()
