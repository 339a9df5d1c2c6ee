"""Clients of different LoRA ranks over the real apps: the right download for each, uploads that fit, one adapter."""

import numpy as np
import pytest

from strategies.refusals import PADDABLE
from strategies.registry import STRATEGIES
from tests.federated import lines, options, run_in_memory, tensors
from umbel.errors import FederationError, SiteError, StrategyError

RANKS = (1, 2, 4)
MIXED = sorted({name for name, cls in STRATEGIES.items() if cls.facts.heterogeneous_ranks} | PADDABLE)


@pytest.fixture
def flat(tiny_root, tmp_path, own_home):
    def make(**changes):
        base = options(tiny_root, federation__rounds=2, train__learning_rate=0.05, lora__rank=4, lora__alpha=8.0)
        base |= {"run.directory": str(tmp_path / "runs"), "federation.timeout": 20.0, "secagg.clip": 5.0}
        base |= {"strategy.ranks": "mixed", "strategy.client-ranks": ",".join(map(str, RANKS))}
        return base | {k.replace("__", ".").replace("_", "-"): v for k, v in changes.items()}

    return make


@pytest.mark.parametrize("name", MIXED)
def test_every_method_that_allows_it_trains_mixed_ranks(flat, name):
    """Each client gets and trains an adapter of its own rank; the export stands at the top rank."""
    from client.client_app import app
    from mllm.warm import warm_model
    from umbel import wire
    from umbel.config import RunConfig

    spec = warm_model(RunConfig.from_flat(flat())).tuned.spec
    asked = {}

    def client(message, context):
        if message.metadata.message_type == "train":
            order = wire.unpack_train_order(message.content)
            if order.pass_number == 1:
                asked[context.node_config["partition-id"]] = (order.spec_hash, order.adapter.size)
        return app(message, context)

    path = run_in_memory(flat(strategy__name=name), client=client)
    assert [line["survivors"] for line in lines(path)] == [4, 4]
    wanted = {index: spec.with_rank(RANKS[index % 3]) for index in range(4)}
    assert asked == {index: (own.hash, own.size) for index, own in wanted.items()}
    arrays = tensors(path)
    first = next(array for key, array in sorted(arrays.items()) if key.endswith("lora_A.weight"))
    (start,), (end,) = lines(path, "start"), lines(path, "end")
    if name == "flora":  # the export holds the side term as further ranks
        assert first.shape[0] > 4
    else:
        assert first.shape[0] == 4
    if name != "fedsa-lora":
        assert end["evaluation"]["eval"]["loss"] < start["baseline"]["eval"]["loss"] - 1e-4


@pytest.mark.parametrize("name", ["fedask", "ffa-lora", "fedsa-lora"])
def test_mixed_ranks_under_secure_aggregation_equal_the_plain_run(flat, name):
    """Everybody is sent the same adapter, to which the round is bound, and cuts it itself."""
    one = {"strategy__name": name, "federation__rounds": 1, "secagg__clip": 60.0}  # rank 1 sends 4 times its B
    secure = run_in_memory(flat(run__id="s", secagg__enabled=True, **one))
    plain = run_in_memory(flat(run__id="p", **one))
    (line,) = lines(secure)
    assert line["survivors"] == 4
    a, b = lines(secure, "end")[0]["evaluation"]["eval"], lines(plain, "end")[0]["evaluation"]["eval"]
    assert a["loss"] == pytest.approx(b["loss"], abs=3e-3)
    if name != "fedask":
        assert max(np.abs(tensors(secure)[k] - tensors(plain)[k]).max() for k in tensors(plain)) < 1e-3


def test_a_padded_round_is_the_average_of_the_clients_products(flat):
    """FFA-LoRA: with A frozen, s B A moves by exactly the mean of what the clients of each rank learned."""
    from client.client_app import app
    from mllm.warm import warm_model
    from umbel import wire
    from umbel.config import RunConfig

    config = RunConfig.from_flat(flat(strategy__name="ffa-lora", federation__rounds=1))
    learned = {}

    def client(message, context):
        reply = app(message, context)
        if message.metadata.message_type == "train":
            order = wire.unpack_train_order(message.content)
            tuned = warm_model(config).tuned.at_rank(RANKS[context.node_config["partition-id"] % 3])
            assert order.spec_hash == tuned.spec.hash
            views = tuned.spec.views(tuned.vector())
            learned[context.node_config["partition-id"]] = {
                pair.module: tuned.spec.lora.scaling * views[pair.b.name] @ views[pair.a.name]
                for pair in tuned.spec.pairs
            }
        return reply

    arrays = tensors(run_in_memory(config.to_flat(), client=client))
    assert len(learned) == 4
    for module in learned[0]:
        mean = np.mean([one[module] for one in learned.values()], axis=0)
        whole = 2.0 * arrays[f"{module}.lora_B.weight"] @ arrays[f"{module}.lora_A.weight"]
        np.testing.assert_allclose(whole, mean, atol=1e-6)
        assert np.abs(mean).max() > 1e-4


def test_a_killed_site_process_changes_nothing(flat):
    first = tensors(run_in_memory(flat(run__id="a", strategy__name="flexlora")))
    again = tensors(run_in_memory(flat(run__id="b", strategy__name="flexlora")))
    assert all(np.array_equal(first[k], again[k]) for k in first)


def test_mixed_ranks_under_example_level_privacy(flat):
    """Every client clips and noises at its own rank; what it sends is padded afterwards."""
    private = {"privacy__unit": "example", "privacy__delta": 1e-2, "privacy__epsilon": 30.0, "federation__rounds": 1}
    path = run_in_memory(flat(strategy__name="ffa-lora", secagg__enabled=True, **private))
    (line,) = lines(path)
    assert line["survivors"] == 4
    assert 0 < line["privacy"]["epsilon"] <= 30.0
    moved = [np.abs(array) for name, array in tensors(path).items() if "lora_B" in name]
    # Ranks 1, 2, 4, 1 of four clients: all move the first column, one the last two.
    assert min(float(b[:, 0].mean()) for b in moved) > max(float(b[:, 3].mean()) for b in moved) > 0


def test_a_nodes_own_rank_goes_first(flat):
    from client.client_app import app
    from umbel import wire

    described = {}

    def client(message, context):
        reply = app(message, context)
        if message.metadata.message_type == "query.describe":
            described[context.node_config["partition-id"]] = wire.unpack_description(reply.content).rank
        return reply

    def hook(grid):
        grid.contexts[1].node_config["rank"] = 3

    run_in_memory(flat(strategy__name="hetlora", federation__rounds=1), client=client, grid_hook=hook)
    assert described == {0: 3, 1: 2, 2: 4, 3: 1}


@pytest.mark.parametrize(("rank", "words"), [(9, "outside 1 to lora.rank 4"), ("big", "whole number")])
def test_a_node_with_an_impossible_rank_is_left_out(flat, rank, words, caplog):
    def hook(grid):
        grid.contexts[1].node_config["rank"] = rank

    path = run_in_memory(flat(strategy__name="hetlora", federation__rounds=1), grid_hook=hook)
    assert lines(path)[0]["cohort"] == 3
    assert words in caplog.text


def test_a_node_of_another_rank_cannot_take_part_where_ranks_are_the_same(flat, caplog):
    def hook(grid):
        grid.contexts[1].node_config["rank"] = 2

    changes = {"strategy__name": "hetlora", "strategy__ranks": "same", "strategy__client_ranks": "top"}
    with pytest.raises(FederationError, match=r"strategy\.ranks to mixed"):
        run_in_memory(flat(federation__minimum=4, **changes), grid_hook=hook)


def test_a_description_of_another_model_or_rank_is_left_out(tiny_root, flat, caplog):
    """What a site says of itself is checked by the coordinator too."""
    from flwr.app import Message

    from client.client_app import app
    from umbel import wire

    lies = {1: {"rank": 8}, 2: {"spec_hash": "0" * 64}, 3: {"rank": 0}}

    def client(message, context):
        reply = app(message, context)
        lie = lies.get(context.node_config["partition-id"])
        if message.metadata.message_type == "query.describe" and lie:
            said = wire.unpack_description(reply.content)
            values = {name: getattr(said, name) for name in wire.Description.__slots__} | lie
            return Message(wire.pack_description(wire.Description(**values)), reply_to=message)
        return reply

    with pytest.raises(FederationError, match="Only 1 of 4 sites"):
        run_in_memory(flat(strategy__name="hetlora"), client=client)


def test_an_update_of_another_rank_than_described_is_counted_and_not_used(flat):
    from flwr.app import Message

    from client.client_app import app
    from mllm.warm import warm_model
    from umbel import wire
    from umbel.config import RunConfig

    config = RunConfig.from_flat(flat(strategy__name="hetlora", federation__rounds=1))
    top = warm_model(config).tuned.spec

    def client(message, context):
        reply = app(message, context)
        if message.metadata.message_type == "train" and context.node_config["partition-id"] == 0:
            return Message(wire.pack_train_reply(wire.TrainReply(top.hash, top.zeros(), {})), reply_to=message)
        return reply

    (line,) = lines(run_in_memory(config.to_flat(), client=client))
    assert (line["survivors"], line["rejected"]) == (3, 1)


@pytest.mark.parametrize("name", sorted(set(STRATEGIES) - set(MIXED)))
def test_methods_of_one_rank_refuse_mixed_ones(flat, name):
    with pytest.raises(StrategyError, match="different ranks"):
        run_in_memory(flat(strategy__name=name))


def test_a_site_refuses_an_adapter_of_a_third_rank(flat):
    from client.local_site import LocalSite
    from client.store import MemoryStore
    from mllm.warm import warm_model
    from umbel.config import RunConfig
    from umbel.wire import TrainOrder

    config = RunConfig.from_flat(flat(strategy__name="flexlora"))
    other = warm_model(config).tuned.spec.with_rank(3)
    site = LocalSite(config, 0, 4, MemoryStore(), run="1")
    with pytest.raises(SiteError, match="is not this site's"):
        site.train(TrainOrder(1, other.hash, other.zeros()))
