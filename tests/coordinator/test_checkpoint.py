import numpy as np
import pytest

from coordinator.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from strategies.base import StrategyState
from umbel.adapter import AdapterSpec, LoraShape
from umbel.errors import RunError

SPEC = AdapterSpec.from_shapes({"m.lora_A.weight": (2, 3), "m.lora_B.weight": (4, 2)}, LoraShape(2, 4.0))


def test_round_trip(tmp_path):
    assert load_checkpoint(tmp_path, SPEC) is None
    arrays = {"adapter": np.arange(14, dtype=np.float32), "momentum": np.ones(3, np.float32)}
    save_checkpoint(tmp_path / "c", Checkpoint(4, StrategyState(arrays), SPEC.hash))
    found = load_checkpoint(tmp_path / "c", SPEC)
    assert found.round == 4
    for name, array in arrays.items():
        np.testing.assert_array_equal(found.state.arrays[name], array)


def test_damage_and_foreign_specs_are_refused(tmp_path):
    save_checkpoint(tmp_path, Checkpoint(1, StrategyState({"adapter": SPEC.zeros()}), SPEC.hash))
    with pytest.raises(RunError, match="another adapter"):
        load_checkpoint(tmp_path, SPEC.with_rank(3))
    path = tmp_path / "state.safetensors"
    data = path.read_bytes()
    for broken in (data[:-3], data[:5], b"", b"{}" + data):
        path.write_bytes(broken)
        with pytest.raises(RunError, match="cannot be read"):
            load_checkpoint(tmp_path, SPEC)
