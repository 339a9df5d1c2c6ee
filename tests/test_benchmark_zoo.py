"""What `umbel zoo` marks as verified: the record is whole, and can be made again."""

import json

import pytest

from benchmarks.zoo import data_folder, is_whole, row_of
from mllm.zoo import NATIVE, SYSTEMS
from mllm.zoo.figures import VERIFIED


def test_every_system_s_record_is_whole():
    rows = json.loads(VERIFIED.read_text())
    listed = {*SYSTEMS, *(name for name, family in NATIVE.items() if family.processor)}
    assert set(rows) == listed
    assert [name for name, row in rows.items() if not is_whole(row)] == []
    assert all(rows[name]["checkpoint_ok"] is True for name in SYSTEMS)


@pytest.mark.parametrize("name", ["bunny-v1", "cobra", "sphinx-tiny", "qwen3_vl"])
def test_the_record_can_be_made_again(name, tmp_path):
    row = row_of(name, data_folder(tmp_path / "data"), tmp_path / "runs")
    assert row.get("error") is None
    assert is_whole(row)
    assert row["adapter_bytes"] == json.loads(VERIFIED.read_text())[name]["adapter_bytes"]


@pytest.mark.parametrize("what", ["round_ok", "quantized", "lanes", "checkpoint_ok"])
def test_a_row_with_anything_amiss_is_not_whole(what):
    row = {"round_ok": True, "quantized": True, "lanes": True, "checkpoint_ok": None}
    assert is_whole(row)
    assert not is_whole(row | {what: False})
