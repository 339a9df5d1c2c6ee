"""Side terms: reading and writing them, and folding them into one adapter of a larger rank."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from umbel.adapter import AdapterSpec, LoraShape
from umbel.errors import AdapterError
from umbel.side import SideTerm, fold_side, read_side, unfold_side, write_side

MODULES = {"m.one": (5, 7), "m.two": (6, 4)}


def spec_of(rank, alpha, rslora):
    shapes = {}
    for module, (outputs, inputs) in MODULES.items():
        shapes[f"{module}.lora_A.weight"] = (rank, inputs)
        shapes[f"{module}.lora_B.weight"] = (outputs, rank)
    return AdapterSpec.from_shapes(shapes, LoraShape(rank, alpha, rslora))


def delta(spec, vector, module):
    views = spec.views(vector)
    a, b = views[f"{module}.lora_A.weight"], views[f"{module}.lora_B.weight"]
    return spec.lora.scaling * b.astype(float) @ a.astype(float)


def term(rng, module, rank):
    outputs, inputs = MODULES[module]
    return SideTerm(
        rng.standard_normal((rank, inputs)).astype(np.float32), rng.standard_normal((outputs, rank)).astype(np.float32)
    )


@given(
    seed=st.integers(0, 99),
    rank=st.integers(1, 4),
    alpha=st.floats(0.5, 64),
    rslora=st.booleans(),
    extra=st.dictionaries(st.sampled_from(sorted(MODULES)), st.integers(1, 5), min_size=1),
)
def test_the_folded_adapter_is_the_sum_and_comes_apart_again(seed, rank, alpha, rslora, extra):
    rng, spec = np.random.default_rng(seed), spec_of(rank, alpha, rslora)
    vector = rng.standard_normal(spec.size).astype(np.float32)
    terms = {module: term(rng, module, k) for module, k in extra.items()}
    wide, folded = fold_side(spec, vector, terms)
    assert wide.lora.rank == rank + max(extra.values())
    assert wide.lora.scaling == pytest.approx(spec.lora.scaling, rel=1e-12)
    for module in MODULES:
        side = terms[module].b.astype(float) @ terms[module].a if module in terms else 0
        np.testing.assert_allclose(delta(wide, folded, module), delta(spec, vector, module) + side, atol=2e-5)
    again, found = unfold_side(spec, wide.views(folded))
    assert np.array_equal(again, vector)
    for module, side in terms.items():
        np.testing.assert_allclose(found[module].b @ found[module].a, side.b @ side.a, atol=1e-5)


def test_without_terms_nothing_changes():
    spec = spec_of(2, 4.0, False)
    vector = np.arange(spec.size, dtype=np.float32)
    same, folded = fold_side(spec, vector, {})
    assert same is spec
    assert folded is vector
    again, terms = unfold_side(spec, spec.views(vector))
    assert np.array_equal(again, vector)
    assert terms == {}


def test_arrays_carry_terms_and_half_a_pair_is_refused():
    terms = {module: term(np.random.default_rng(0), module, 2) for module in MODULES}
    arrays = {**write_side(terms), "adapter": np.zeros(3, np.float32)}
    assert {m: (t.a.shape, t.b.shape) for m, t in read_side(arrays).items()} == {
        m: (t.a.shape, t.b.shape) for m, t in terms.items()
    }
    del arrays["side.m.one.B"]
    with pytest.raises(AdapterError, match=r"m\.one lacks a factor"):
        read_side(arrays)


@pytest.mark.parametrize(
    ("module", "a", "b", "words"),
    [
        ("m.three", (2, 7), (5, 2), "no LoRA factors"),
        ("m.one", (2, 6), (5, 2), "shapes"),
        ("m.one", (2, 7), (4, 2), "shapes"),
        ("m.one", (2, 7), (5, 3), "shapes"),
    ],
)
def test_a_term_that_does_not_fit_is_refused(module, a, b, words):
    spec = spec_of(2, 4.0, False)
    with pytest.raises(AdapterError, match=words):
        fold_side(spec, spec.zeros(), {module: SideTerm(np.zeros(a, np.float32), np.zeros(b, np.float32))})


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(value):
    spec = spec_of(2, 4.0, False)
    bad = SideTerm(np.full((1, 7), value, np.float32), np.ones((5, 1), np.float32))
    with pytest.raises(AdapterError, match="not finite"):
        fold_side(spec, spec.zeros(), {"m.one": bad})
