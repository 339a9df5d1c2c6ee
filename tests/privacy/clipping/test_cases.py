"""Checkpointing, dropout, rsLoRA, modules_to_save, shared layers, microbatches, broken gradients."""

import copy

import pytest
import torch
from torch import nn

from privacy.clipping import clip_factors, make_engine
from privacy.clipping.check import relative_error
from tests.privacy.clipping.cells import Cell, adapt, base, cell
from umbel.errors import PrivacyError
from umbel.rows import RowMap

torch.set_num_threads(1)
C = 0.05


def agree(one: Cell, norm: float = C, tolerance: float = 1e-5):
    seen, total = one.run(make_engine("bookkeeping", one.model, one.trainable, norm))
    expected, oracle = one.run(make_engine("loop", one.model, one.trainable, norm))
    torch.testing.assert_close(seen.norms, expected.norms, rtol=tolerance, atol=1e-8)
    assert relative_error(total, oracle) <= tolerance
    return seen, total


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "composed"])
def test_gradient_checkpointing(name, reentrant):
    plain = cell(name, "both", "ragged")
    _, expected = plain.run(make_engine("loop", plain.model, plain.trainable, C))
    one = cell(name, "both", "ragged")
    one.model.train()
    one.model.enable_input_require_grads()
    one.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    _, total = one.run(make_engine("bookkeeping", one.model, one.trainable, C))
    assert relative_error(total, expected) <= 1e-5


def test_rslora_and_lora_bias():
    agree(cell("llava", "both", "ragged", use_rslora=True, lora_bias=True))


@pytest.mark.parametrize("name", ["llava", "internvl", "qwen2_5_vl"])
def test_modules_to_save(name):
    """Projector (linear with bias, LayerNorm or RMS norm) and head trained in full."""
    saved = {"llava": "multi_modal_projector", "internvl": "multi_modal_projector", "qwen2_5_vl": "merger"}[name]
    one = cell(name, "language", "ragged", modules_to_save=[saved, "lm_head"])
    agree(one)
    kinds = " ".join(one.trainable)
    assert "lm_head" in kinds
    assert saved in kinds
    if name != "llava":
        assert "layer_norm" in kinds or "layers.0" in kinds or "ln_q" in kinds or "multi_modal_projector" in kinds


@pytest.mark.parametrize("frozen", ["lora_A", "lora_B"])
def test_one_factor_frozen(frozen):
    """As strategies that train one factor at a time do."""
    one = cell("llava", "both", "ragged")
    for name, p in one.trainable.items():
        p.requires_grad_(frozen not in name)
    one.trainable = {name: p for name, p in one.trainable.items() if p.requires_grad}
    _, total = agree(one)
    assert not any(frozen in name for name in total)
    assert sum(bool(value.any()) for value in total.values()) > len(total) / 2


def test_dropout_keeps_the_sum():
    """With no clipping and the same seed the clipped sum is the gradient of the plain sum of losses."""
    one = cell("llava", "both", "ragged", lora_dropout=0.3)
    one.model.train()
    torch.manual_seed(3)
    one.forward(one.batch).sum().backward()
    plain = {name: p.grad.clone() for name, p in one.trainable.items() if p.grad is not None}
    torch.manual_seed(3)
    seen, total = one.run(make_engine("bookkeeping", one.model, one.trainable, 1e6))
    assert seen.clipped_fraction == 0
    assert relative_error({k: total[k] for k in plain}, plain) <= 1e-5


class Twice(nn.Module):
    """One layer used twice, of a size that is booked as gradients or as kept rows."""

    def __init__(self, width: int, scale: float = 0.5):
        super().__init__()
        torch.manual_seed(0)
        self.shared = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        return self.head(self.shared(self.norm(torch.tanh(self.shared(x)))))


@pytest.mark.parametrize(("width", "length"), [(4, 9), (64, 3), (64, 1)])
def test_a_layer_used_twice(width, length):
    model = Twice(width)
    trainable = dict(model.named_parameters())
    x = torch.randn(5, length, width, generator=torch.Generator().manual_seed(1)) * 3
    forward = lambda b: model(b).square().sum(dim=(1, 2))  # noqa: E731
    results = []
    for kind in ("bookkeeping", "loop"):
        engine = make_engine(kind, model, trainable, 0.3)
        seen = engine.accumulate(forward, x, RowMap.batch(5), 5, lambda b, i: b[i : i + 1])
        results.append((seen.norms, engine.take()))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-5, atol=0)
    assert relative_error(results[0][1], results[1][1]) <= 1e-5


def test_several_microbatches_make_one_step():
    one = cell("llava", "both", "several")
    engine = make_engine("bookkeeping", one.model, one.trainable, C)
    _, whole = one.run(engine)
    for i in range(one.size):
        part = one.split(one.batch, i)
        from mllm.rows import row_map

        engine.accumulate(one.forward, part, row_map(one.model, part[0], part[2]), 1)
    assert relative_error(engine.take(), whole) <= 1e-5
    assert all(not value.any() for value in engine.take().values())  # taken means taken


def test_an_empty_batch_adds_nothing():
    one = cell("llava", "language", "one")
    for kind in ("bookkeeping", "loop", "auto"):
        engine = make_engine(kind, one.model, one.trainable, C)
        seen = engine.accumulate(lambda _: pytest.fail("forward ran"), None, RowMap.batch(0), 0)
        assert seen.norms.shape == (0,)
        assert seen.clipped_fraction == 0
        taken = engine.take()
        assert set(taken) == set(one.trainable)
        assert all(v.shape == one.trainable[k].shape and not v.any() for k, v in taken.items())


@pytest.mark.parametrize("kind", ["bookkeeping", "loop"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_broken_example_contributes_nothing_and_harms_nobody(kind, bad):
    one = cell("llava", "both", "one")
    broken = copy.deepcopy(one.batch)
    broken[0]["pixel_values"][1] = bad
    engine = make_engine(kind, one.model, one.trainable, C)
    seen = engine.accumulate(one.forward, broken, one.rows, 3, one.split)
    total = engine.take()
    assert seen.nonfinite == 1
    assert not torch.isfinite(seen.norms[1])
    assert all(torch.isfinite(v).all() for v in total.values())
    loop = make_engine("loop", one.model, one.trainable, C)
    for i in (0, 2):
        loop.accumulate(one.forward, one.split(one.batch, i), None, 1, lambda b, _: b)
    assert relative_error(total, loop.take()) <= 1e-5


def test_no_clipping_gives_the_plain_gradient():
    one = cell("smolvlm", "both", "ragged")
    one.forward(one.batch).sum().backward()
    plain = {name: p.grad.clone() for name, p in one.trainable.items() if p.grad is not None}
    for kind in ("bookkeeping", "loop", "auto"):
        _, total = one.run(make_engine(kind, one.model, one.trainable, 1e9))
        assert relative_error({k: total[k] for k in plain}, plain) <= 1e-5


def test_the_model_is_left_as_it_was():
    one = cell("llava", "both", "one")
    one.run(make_engine("bookkeeping", one.model, one.trainable, C))
    assert all("forward" not in vars(m) for m in one.model.modules() if type(m) is nn.Linear)
    assert all(p.grad is None for p in one.trainable.values())
    with pytest.raises(RuntimeError, match="mine"):
        make_engine("bookkeeping", one.model, one.trainable, C).accumulate(_fails, one.batch, one.rows, 3)
    assert all("forward" not in vars(m) for m in one.model.modules() if type(m) is nn.Linear)


def _fails(_):
    raise RuntimeError("mine")


def test_a_loop_that_fails_half_way_adds_nothing():
    one = cell("llava", "language", "one")
    engine = make_engine("loop", one.model, one.trainable, C)
    calls = []

    def forward(batch):
        calls.append(1)
        return _fails(batch) if len(calls) == 3 else one.forward(batch)

    with pytest.raises(RuntimeError, match="mine"):
        engine.accumulate(forward, one.batch, None, 3, one.split)
    assert all(not value.any() for value in engine.take().values())


def test_auto_takes_the_loop_where_there_is_no_row_map():
    one = cell("llava", "both", "ragged")
    engine = make_engine("auto", one.model, one.trainable, C)
    engine.accumulate(one.forward, one.batch, None, 3, one.split)
    _, oracle = one.run(make_engine("loop", one.model, one.trainable, C))
    assert relative_error(engine.take(), oracle) <= 1e-6
    with pytest.raises(PrivacyError, match="split"):
        engine.accumulate(one.forward, one.batch, None, 3)


def test_clip_factors():
    nan, inf = float("nan"), float("inf")
    factors = clip_factors(torch.tensor([0.0, 0.5, 1.0, 2.0, 1e30, inf, nan]), 1.0)
    assert factors.dtype == torch.float32
    assert factors[:3].tolist() == [1.0, 1.0, 1.0]
    assert factors[3] == pytest.approx(0.5, rel=1e-6)
    assert float(factors[3]) < 0.5
    assert factors[5:].tolist() == [0.0, 0.0]


def test_autocast_bounds_every_example():
    """Under bf16 autocast the engines differ by rounding, but what is summed is what was measured."""
    one = cell("llava", "both", "several")
    norm = 0.01
    engine = make_engine("bookkeeping", one.model, one.trainable, norm)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for i in range(one.size):
            part = one.split(one.batch, i)
            from mllm.rows import row_map

            engine.accumulate(one.forward, part, row_map(one.model, part[0], part[2]), 1)
            total = sum(float(v.double().square().sum()) for v in engine.take().values()) ** 0.5
            assert 0.999 * norm <= total <= norm * (1 + 1e-6)


def test_adapters_named_by_the_caller():
    """Names are the caller's; parameters are told by identity."""
    model, trainable = adapt(base("llava").model, target_modules=r".*language_model.*q_proj")
    renamed = {f"mine.{i}": p for i, p in enumerate(trainable.values())}
    assert set(make_engine("bookkeeping", model, renamed, C).take()) == set(renamed)
