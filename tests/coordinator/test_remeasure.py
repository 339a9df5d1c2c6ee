import numpy as np
import pytest
from safetensors.numpy import save_file

from coordinator.remeasure import load_adapter, remeasure
from tests.coordinator.sample_run import write_run
from umbel.adapter import AdapterSpec, LoraShape
from umbel.errors import AdapterError, RunError

SPEC = AdapterSpec.from_shapes({"m.lora_A.weight": (2, 3), "m.lora_B.weight": (4, 2)}, LoraShape(2, 4.0))


@pytest.fixture
def folder(tmp_path):
    path = write_run(tmp_path)
    (path / "adapter").mkdir()
    (path / "adapter" / "adapter_config.json").write_text("{}")
    return path


def leave(folder, tensors):
    save_file(tensors, folder / "adapter" / "adapter_model.safetensors")


def test_the_adapter_comes_back_as_its_vector(folder):
    vector = np.arange(SPEC.size, dtype=np.float32)
    leave(folder, {name: np.ascontiguousarray(view) for name, view in SPEC.views(vector).items()})
    loaded, side = load_adapter(folder, SPEC)
    np.testing.assert_array_equal(loaded, vector)
    assert not side


def test_an_adapter_that_does_not_fit_is_refused(folder):
    leave(folder, {"m.lora_A.weight": np.zeros((2, 3), np.float32)})
    with pytest.raises(AdapterError, match="missing"):
        load_adapter(folder, SPEC)
    views = SPEC.views(SPEC.zeros())
    leave(folder, {name: np.full_like(view, np.nan) for name, view in views.items()})
    with pytest.raises(AdapterError, match="not finite"):
        load_adapter(folder, SPEC)


def test_a_damaged_file_is_one_sentence(folder):
    (folder / "adapter" / "adapter_model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}")
    with pytest.raises(RunError, match="cannot be read"):
        load_adapter(folder, SPEC)


def test_a_run_without_an_adapter_is_refused_before_anything_is_loaded(tmp_path):
    said = []
    with pytest.raises(RunError, match="has no adapter yet"):
        remeasure(write_run(tmp_path), 0, said.append)
    assert said == []
