import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from umbel.adapter import AdapterSpec, LoraShape
from umbel.errors import AdapterError

names = st.lists(st.text("abc.", min_size=1, max_size=6), min_size=1, max_size=5, unique=True)
shapes = st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple)


def spec_of(rank=2):
    shapes = {
        "m.q.lora_A.weight": (rank, 6),
        "m.q.lora_B.weight": (4, rank),
        "m.proj.weight": (3, 3),
        "m.v.lora_A.weight": (rank, 6),
        "m.v.lora_B.weight": (5, rank),
    }
    return AdapterSpec.from_shapes(shapes, LoraShape(rank, 8.0))


@given(names, st.data())
def test_flatten_and_views_are_inverse(names, data):
    spec = AdapterSpec.from_shapes({n: data.draw(shapes) for n in names}, LoraShape(1, 1.0))
    named = {t.name: np.random.default_rng(0).normal(size=t.shape).astype(np.float32) for t in spec}
    vector = spec.flatten(named)
    views = spec.views(vector)
    assert list(views) == names
    for name, value in named.items():
        np.testing.assert_array_equal(views[name], value)
    views[names[0]][...] = 7
    assert (spec.views(vector)[names[0]] == 7).all()


def test_json_round_trip_keeps_the_hash():
    spec = spec_of()
    again = AdapterSpec.from_json(spec.to_json())
    assert again == spec
    assert again.hash == spec.hash


def test_hash_sees_names_shapes_order_rank_and_scale():
    spec = spec_of()
    others = [
        AdapterSpec.from_shapes(dict(reversed([(t.name, t.shape) for t in spec])), spec.lora),
        AdapterSpec.from_shapes({t.name + "x": t.shape for t in spec}, spec.lora),
        AdapterSpec(spec.tensors, LoraShape(2, 9.0)),
        AdapterSpec(spec.tensors, LoraShape(2, 8.0, rslora=True)),
        spec.with_rank(3),
    ]
    assert len({s.hash for s in [spec, *others]}) == len(others) + 1


def test_pairs_and_others():
    spec = spec_of()
    assert [(p.module, p.rank) for p in spec.pairs] == [("m.q", 2), ("m.v", 2)]
    assert [t.name for t in spec.others] == ["m.proj.weight"]


def test_with_rank_changes_both_factors_only():
    spec = spec_of().with_rank(5)
    assert spec.lora.rank == 5
    assert spec.by_name["m.q.lora_A.weight"].shape == (5, 6)
    assert spec.by_name["m.q.lora_B.weight"].shape == (4, 5)
    assert spec.by_name["m.proj.weight"].shape == (3, 3)


def test_scaling_of_lora_and_rslora():
    assert LoraShape(4, 8.0).scaling == 2.0
    assert LoraShape(4, 8.0, rslora=True).scaling == 4.0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_check_refuses_values_that_are_not_finite(value):
    spec = spec_of()
    vector = spec.zeros()
    spec.check(vector)
    vector[3] = value
    with pytest.raises(AdapterError, match="not finite"):
        spec.check(vector)


@pytest.mark.parametrize(
    "vector", [np.zeros(3, np.float32), np.zeros(spec_of().size), np.zeros((1, spec_of().size), np.float32)]
)
def test_check_refuses_wrong_length_dtype_and_shape(vector):
    with pytest.raises(AdapterError, match="expected"):
        spec_of().check(vector)


def test_flatten_refuses_missing_unexpected_and_misshapen():
    spec = spec_of()
    good = {t.name: np.zeros(t.shape, np.float32) for t in spec}
    with pytest.raises(AdapterError, match="missing"):
        spec.flatten({k: v for k, v in good.items() if k != "m.proj.weight"})
    with pytest.raises(AdapterError, match="unexpected"):
        spec.flatten({**good, "x": np.zeros(1, np.float32)})
    with pytest.raises(AdapterError, match="shape"):
        spec.flatten({**good, "m.proj.weight": np.zeros((9,), np.float32)})


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[]", '{"lora":[1,1,false],"tensors":[["a",[1]],["a",[1]]]}', '{"lora":[0,1,false],"tensors":[]}'],
)
def test_from_json_refuses_what_is_no_spec(text):
    with pytest.raises(AdapterError):
        AdapterSpec.from_json(text)


def test_the_same_selection_is_the_same_object():
    spec = spec_of()
    assert spec.select(lambda name: True) is spec
    assert spec.select(lambda name: "lora_B" in name) is spec.select(lambda name: name.endswith("lora_B.weight"))
    assert spec.select(lambda name: "lora_A" in name).hash != spec.select(lambda name: "lora_B" in name).hash
