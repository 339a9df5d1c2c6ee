"""Lanes equal the sequential trainer, client by client."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mllm.testing import tiny_composed, tiny_llava, tiny_qwen25vl, tiny_smolvlm
from privacy.terms import Relation, Sampler
from simulations.batched import LaneJob, LaneResult, LaneTrainer, train_many
from simulations.batched.fit import lane_sites
from simulations.batched.group import LaneGroup
from simulations.batched.lane import Lane, order_lanes
from strategies.fed_sb import FedSB
from strategies.feddpa import FedDPA
from strategies.fedit import FedIT
from strategies.fedsa_lora import FedSALora
from strategies.ffa_lora import FFALora
from strategies.flasc import Flasc
from strategies.proximal import Proximal
from strategies.rolora import RoLora
from strategies.scaffold import Scaffold
from tests.simulations.batched.lanes import check_equal, one_by_one, private, relative, setting, train_config
from umbel.errors import ConfigError, DataError, ModelError, UmbelError
from umbel.side import SideTerm


def jobs_of(
    case, strategy=None, *, sizes=(8, 3, 6, 12), amounts=(0, 2, 4, 0), dp=None, steps=3, extras=None, kept=None
):
    """A maker of jobs: private steps and rounds hold state, so each training needs its own."""
    strategy = strategy or FedIT()

    def make():
        jobs, at = [], 0
        for number, (size, amount) in enumerate(zip(sizes, amounts, strict=True)):
            examples = case.examples.subset([(at + k) % len(case.examples) for k in range(size)])
            at += size
            client = strategy.begin(case.tuned.spec, case.initial, 1, extras, (kept or {}).get(number))
            steps_of = None if dp is None else private(size, amount or steps, number, **dp)
            jobs.append(LaneJob(examples, client, 100 + number, amount, steps_of, span=(0.1 * number, 0.5)))
        return jobs

    return make


FAMILIES = {
    "composed": (tiny_composed, {}),
    "composed with a transformer tower": (lambda: tiny_composed("siglip"), {"targets": "language,vision"}),
    "llava": (tiny_llava, {"targets": "language,vision,projector"}),
    "smolvlm": (tiny_smolvlm, {"targets": "language,vision", "dropout": 0.1}),
    "qwen": (tiny_qwen25vl, {"targets": "language,vision", "dropout": 0.1}),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_trains_as_one_by_one(family, pictures):
    make, options = FAMILIES[family]
    case = setting(make(), pictures, **options)
    check_equal(case, train_config(microbatch=3), jobs_of(case))
    check_equal(case, train_config(optimizer="adamw", microbatch=3), jobs_of(case))
    check_equal(case, train_config(microbatch=3), jobs_of(case, dp={}))


STRATEGIES = {
    "ffa": FFALora(),
    "fedsa": FedSALora(),
    "prox": Proximal(FedIT(), mu=0.5),
    "flasc": Flasc(),
    "rolora": RoLora(),
    "feddpa": FedDPA(),
    "fed-sb": FedSB(),
    "ffa+prox": Proximal(FFALora(), mu=0.5),
}


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_trains_as_one_by_one(name, case):
    check_equal(case, train_config(optimizer="adamw"), jobs_of(case, STRATEGIES[name]))
    if name in ("ffa", "prox"):
        check_equal(case, train_config(), jobs_of(case, STRATEGIES[name], dp={}))


def test_scaffold_with_its_own_control_variates(case):
    rng = np.random.default_rng(0)
    control = {"scaffold.control": rng.normal(0, 1e-2, case.tuned.spec.size).astype(np.float32)}
    own = {1: {"scaffold.own": rng.normal(0, 1e-2, case.tuned.spec.size).astype(np.float32)}}
    strategy = Scaffold(FedIT())
    check_equal(case, train_config(), jobs_of(case, strategy, extras=control, kept=own))
    make = jobs_of(case, strategy, extras=control, kept=own)
    jobs = make()
    expected = [job.client.finish(v, steps=r.steps, learning_rate=0.1)
                for job, (r, v) in zip(jobs, one_by_one(case, train_config(), jobs), strict=True)]  # fmt: skip
    jobs = make()
    for job, outcome, upload in zip(
        jobs, train_many(case.tuned, case.collator, train_config(), jobs), expected, strict=True
    ):
        got = job.client.finish(outcome.local, steps=outcome.result.steps, learning_rate=0.1)
        assert relative(got, upload, np.zeros_like(upload)) < 1e-5


@pytest.mark.parametrize(
    "changes",
    [
        {"max_grad_norm": 0.01, "learning_rate": 1.0},
        {"max_grad_norm": 0.0, "momentum": 0.9, "weight_decay": 0.1},
        {"optimizer": "adamw", "weight_decay": 0.1, "schedule": "constant"},
        {"unit": "epochs", "amount": 2},
        {"microbatch": 1},
    ],
)
def test_every_option_of_training(case, changes):
    check_equal(case, train_config(**changes), jobs_of(case, amounts=(0, 1, 2, 0)))


def test_dropout_is_drawn_a_lane_at_a_time(pictures):
    case = setting(tiny_composed(), pictures, dropout=0.3)
    check_equal(case, train_config(microbatch=3, optimizer="adamw"), jobs_of(case))
    check_equal(case, train_config(), jobs_of(case, dp={}))
    # the seed matters: another one gives another adapter
    jobs = jobs_of(case)()
    moved = [LaneJob(j.examples, j.client, j.seed + 50, j.amount, span=j.span) for j in jobs]
    a, b = (train_many(case.tuned, case.collator, train_config(batch_size=12), js) for js in (jobs, moved))
    assert relative(a[0].local, b[0].local, case.initial) > 1e-3


@pytest.mark.parametrize(
    "dp",
    [
        {"noise": 1e-9, "norm": 1e6},
        {"sampling_rate": 0.08},  # most batches are empty: noise alone
        {"sampling_rate": 0.5, "relation": Relation.REPLACE_ONE, "sampler": Sampler.FIXED_SIZE},
        {"sampling_rate": 0.34, "sampler": Sampler.SHUFFLED},
        {"engine": "auto"},
    ],
)
def test_private_training_with_the_same_sample_and_noise(case, dp):
    check_equal(case, train_config(), jobs_of(case, dp=dp))


@pytest.mark.parametrize("dp", [None, {"noise": 1e-9, "norm": 1.0}])
@pytest.mark.parametrize("language", ["mixtral", "upcycled"])
def test_the_balance_of_experts_is_trained_and_in_lanes_as_alone(pictures, language, dp):
    case = setting(tiny_composed("siglip", language=language, layers=3), pictures)  # a router after factors
    # Upcycled experts see their own tokens only where no gradient is taken, as in the trial pass before any noise.
    alone = language == "upcycled" and dp is not None
    check_equal(case, train_config(balance=0.5), jobs_of(case, dp=dp), alone=alone)
    ends = []
    for balance in (0.0, 0.5):
        found = train_many(case.tuned, case.collator, train_config(balance=balance), jobs_of(case, dp=dp)())
        ends.append(found[0].local)
    assert relative(*ends, case.initial) > 1e-3


def test_private_adamw(case):
    check_equal(case, train_config(optimizer="adamw"), jobs_of(case, dp={}))


def test_a_lane_without_images_leaves_its_vision_factors_alone(pictures):
    """The sequential optimizer skips what has no gradient: no decay, no momentum, no step counted."""
    case = setting(tiny_composed("siglip"), pictures, targets="language,vision", text_only=range(8, 11))
    for options in ({"momentum": 0.9, "weight_decay": 0.1}, {"optimizer": "adamw", "weight_decay": 0.1}):
        check_equal(case, train_config(**options), jobs_of(case))
        # batches of one: some steps of the second lane's neighbours have images, some have not
        check_equal(
            case, train_config(batch_size=1, **options), jobs_of(case, sizes=(10, 3, 6, 5), amounts=(5, 2, 4, 3))
        )


@pytest.mark.parametrize("rows", [1, 5, 8])
def test_small_passes_change_nothing(case, rows):
    check_equal(case, train_config(), jobs_of(case), rows=rows)


def test_lanes_split_into_groups(case):
    check_equal(case, train_config(), jobs_of(case), lanes=2)


def test_strategies_of_different_tensors_and_ranks_and_side_terms_share_a_call(case):
    spec, rng = case.tuned.spec, np.random.default_rng(1)
    low = case.tuned.at_rank(2).spec
    pair = spec.pairs[0]
    side = {pair.module: SideTerm(rng.normal(0, 0.1, (3, pair.a.shape[1])).astype(np.float32),
                                  rng.normal(0, 0.1, (pair.b.shape[0], 3)).astype(np.float32))}  # fmt: skip

    def make():
        vector = rng.__class__(np.random.PCG64(5)).normal(0, 0.05, low.size).astype(np.float32)
        kinds = [
            lambda: FedIT().begin(spec, case.initial, 1),
            lambda: FFALora().begin(spec, case.initial, 1),
            lambda: FedIT().begin(low, vector, 1),
        ]
        jobs = [LaneJob(case.examples.subset(range(i, i + 6)), kinds[i % 3](), i) for i in range(6)]
        return jobs + [LaneJob(case.examples.subset(range(i, i + 6)), kinds[0](), i, side=side) for i in (6, 7)]

    config = train_config()
    expected = []
    for job in make():
        tuned = case.tuned.at_rank(job.client.spec.lora.rank)
        from client.trainer import Trainer

        Trainer(tuned, case.collator, config).train(job.examples, job.client, seed=job.seed, side=job.side)
        expected.append(tuned.vector())
    for job, outcome, vector in zip(
        make(), LaneTrainer(case.tuned, case.collator, config).train_many(make()), expected, strict=True
    ):
        assert outcome.reason == ""
        assert relative(outcome.local, vector, job.client.start) < 1e-5
    case.tuned.load(case.initial)


def test_float64_agrees_to_rounding(pictures):
    case = setting(tiny_composed("siglip"), pictures, targets="language,vision", dropout=0.1).double()
    make = jobs_of(case, Proximal(FedIT(), mu=0.1), amounts=(8, 3, 5, 8))
    config = train_config(optimizer="adamw", max_grad_norm=0.05)
    expected = []
    for job in make():
        one_by_one(case, config, [job])
        expected.append(torch.cat([p.detach().reshape(-1) for p in case.tuned.parameters.values()]))
    lanes = [Lane(job, config) for job in make()]
    order = order_lanes(lanes)
    group = LaneGroup(case.tuned, case.collator, config, [lanes[i] for i in order], lane_sites(case.tuned), 256)
    group.run()
    assert group.state.weights.dtype == torch.float64
    start = torch.from_numpy(case.initial).double()
    for position, i in enumerate(order):
        error = (group.state.weights[position] - expected[i]).norm() / (expected[i] - start).norm()
        assert error < 1e-10


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(1, 3)), min_size=2, max_size=6),
    st.integers(1, 5),
    st.integers(1, 4),
    st.sampled_from([0, 1, 7]),
    st.booleans(),
)
def test_ragged_groups(case, shapes, batch, microbatch, rows, adamw):
    config = train_config(batch_size=batch, microbatch=microbatch, optimizer="adamw" if adamw else "sgd")
    make = jobs_of(case, sizes=[size for size, _ in shapes], amounts=[amount for _, amount in shapes])
    check_equal(case, config, make, rows=rows)


def test_equal_lanes_give_equal_bits(case):
    make = jobs_of(case)
    trainer = LaneTrainer(case.tuned, case.collator, train_config())
    for a, b in zip(trainer.train_many(make()), trainer.train_many(make()), strict=True):
        np.testing.assert_array_equal(a.local, b.local)


def test_one_lane_is_the_sequential_trainer(case):
    make = jobs_of(case)
    expected = one_by_one(case, train_config(), make())
    found = LaneTrainer(case.tuned, case.collator, train_config(), lanes=1).train_many(make())
    for outcome, (result, vector) in zip(found, expected, strict=True):
        assert outcome.result == result
        np.testing.assert_array_equal(outcome.local, vector)


def test_the_base_runs_once_for_all_lanes(case):
    layer = lane_sites(case.tuned)[0].module.base_layer
    calls = []
    handle = layer.register_forward_hook(lambda module, inputs, output: calls.append(inputs[0].shape[0]))
    train_many(case.tuned, case.collator, train_config(), jobs_of(case, sizes=(8,) * 6, amounts=(2,) * 6)())
    handle.remove()
    assert calls == [24, 24]


def test_a_lane_that_fails_disturbs_nobody(case, pictures):
    from mllm.tasks.base import MemorySet
    from mllm.tasks.example import Example, ImageSource

    make = jobs_of(case)
    expected = one_by_one(case, train_config(), make())
    broken = Example((ImageSource(pictures / "missing.png"),), "what colour is the shape ?", "red")
    mixed = MemorySet([*case.examples.subset(range(4)), broken])
    client = lambda start: FedIT().begin(case.tuned.spec, start, 1)  # noqa: E731
    jobs = [
        LaneJob(case.examples.subset(()), client(case.initial), 0),
        *make(),
        LaneJob(case.examples.subset(range(4)), client(case.initial * np.float32(1e30)), 0),
        LaneJob(mixed, client(case.initial), 0),
    ]
    none, *good, infinite, missing = train_many(case.tuned, case.collator, train_config(batch_size=4), jobs)
    assert isinstance(none, DataError)
    assert "without examples" in str(none)
    assert isinstance(infinite, ModelError)
    assert "not finite" in str(infinite)
    assert isinstance(missing, DataError)
    assert "missing.png" in str(missing)
    for outcome, (_, vector), job in zip(good, expected, make(), strict=True):
        assert relative(outcome.local, vector, job.client.start) < 1e-5


def test_no_jobs_and_nonsense(case):
    assert train_many(case.tuned, case.collator, train_config(), []) == []
    with pytest.raises(ConfigError, match="at least 1 lane"):
        LaneTrainer(case.tuned, case.collator, train_config(), lanes=0)
    with pytest.raises(ConfigError, match="rows"):
        LaneTrainer(case.tuned, case.collator, train_config(), rows=-1)


def test_what_cannot_share_a_batch_is_trained_alone_and_says_why(case):
    make = jobs_of(case, amounts=(1, 1, 1, 1))
    check_equal(case, train_config(), jobs_of(case, dp={"engine": "loop"}, amounts=(1, 1, 1, 1)), alone=True)
    case.tuned.model.config.text_config.attention_dropout = 0.1
    outcomes = train_many(case.tuned, case.collator, train_config(), make())
    assert {outcome.reason for outcome in outcomes} == {"the base's option attention_dropout is 0.1"}
    case.tuned.model.config.text_config.attention_dropout = 0.0
    case.tuned.base.model.vision_tower.extra = torch.nn.BatchNorm2d(3)
    assert "normalises over the batch" in train_many(case.tuned, case.collator, train_config(), make())[0].reason
    case.tuned.base.model.vision_tower.extra = torch.nn.Dropout(0.5)
    assert "drops values" in train_many(case.tuned, case.collator, train_config(), make())[0].reason
    del case.tuned.base.model.vision_tower.extra
    assert train_many(case.tuned, case.collator, train_config(), make())[0].reason == ""


def test_an_unknown_family_is_trained_alone(case, monkeypatch):
    monkeypatch.setattr("simulations.batched.fit.FAMILIES", frozenset({"llava"}))
    check_equal(case, train_config(), jobs_of(case), alone=True)


def test_rows_that_turn_out_not_to_match_are_trained_alone(case, monkeypatch):
    def refuse(*args):
        raise ModelError("no map for this batch")

    monkeypatch.setattr("simulations.batched.group.row_map", refuse)
    check_equal(case, train_config(), jobs_of(case), alone=True)
    monkeypatch.setattr("simulations.batched.group.row_map", refuse)
    # private: found before anything is drawn, so the sample and the noise are those of the sequential trainer
    outcomes = train_many(case.tuned, case.collator, train_config(), jobs_of(case, dp={"engine": "auto"})())
    assert all(isinstance(o, LaneResult) and "no map" in o.reason for o in outcomes)


def test_a_surprise_in_the_middle_of_private_training_releases_nothing(case, monkeypatch):
    from simulations.batched import group

    real, calls = group.row_map, []

    def later(*args):
        calls.append(1)
        if len(calls) > 3:
            raise ModelError("no map for this batch")
        return real(*args)

    monkeypatch.setattr(group, "row_map", later)
    outcomes = train_many(case.tuned, case.collator, train_config(), jobs_of(case, dp={"sampling_rate": 1.0})())
    assert all(isinstance(outcome, UmbelError) for outcome in outcomes)


def test_gradient_checkpointing_changes_nothing(pictures):
    case = setting(tiny_llava(), pictures)
    case.tuned.enable_gradient_checkpointing()
    check_equal(case, train_config(), jobs_of(case))
    check_equal(case, train_config(), jobs_of(case, dp={}))
    wet = setting(tiny_llava(), pictures, dropout=0.1)
    wet.tuned.enable_gradient_checkpointing()
    check_equal(wet, train_config(), jobs_of(wet, amounts=(1, 1, 1, 1)), alone=True)


@pytest.mark.parametrize("backend", ["nf4", "int8-weight-only"])
def test_a_quantized_base(backend, pictures):
    from mllm.quantize import quantize

    tiny = tiny_llava()
    quantize(tiny.model, backend, torch.device("cpu"), torch.float32)
    case = setting(tiny, pictures)
    check_equal(case, train_config(), jobs_of(case))
