"""A base that cannot fit is refused before a weight is read; one that fits never is."""

import json
import shutil
import time

import pytest
import torch

from mllm import load
from mllm.load import load_base
from mllm.quantize import BACKENDS
from mllm.testing import tiny_composed
from mllm.zoo import loading
from mllm.zoo.loading import check_room, stored_bytes, tensors
from umbel.errors import ModelError, QuantizationError

CPU = torch.device("cpu")
GIB = 1 << 30


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_composed(width=128).save(tmp_path_factory.mktemp("base"))


def write(folder, shapes, dtype="BF16", file="model.safetensors"):
    """A checkpoint of the right length that takes no room on the disk."""
    folder.mkdir(parents=True, exist_ok=True)
    entries, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * int(torch.tensor(shape).prod())
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    header = json.dumps({"__metadata__": {"format": "pt"}, **entries}).encode()
    with (folder / file).open("wb") as stream:
        stream.write(len(header).to_bytes(8, "little") + header)
        stream.truncate(8 + len(header) + end)
    (folder / "config.json").write_text('{"model_type": "umbel_vlm"}')
    return folder


def large(folder, layers=130):
    """19.5 GB of bfloat16 weights."""
    shapes = {f"language_model.model.layers.{i}.mlp.up_proj.weight": (5000, 15000) for i in range(layers)}
    return write(folder, shapes)


def memory(monkeypatch, gib):
    monkeypatch.setattr(loading, "memory_limit", lambda: (int(gib * GIB),) * 2)


def test_a_base_larger_than_the_memory_is_refused_with_what_to_do(tmp_path, monkeypatch):
    folder = large(tmp_path / "base")
    memory(monkeypatch, 4)
    monkeypatch.setattr(load, "_load_model", lambda *_: pytest.fail("it was loaded"))
    with pytest.raises(ModelError, match=r"'nf4' needs at least 5\.4 GiB of memory, and 4\.0 of 4\.0 are") as nf4:
        load_base(str(folder), "nf4", device="cpu")
    assert "to nf4" not in str(nf4.value)
    with pytest.raises(ModelError, match=r"as 'none' needs at least 36\.3 GiB .* to nf4, choose a smaller system"):
        load_base(str(folder), "none", device="cpu")
    with pytest.raises(ModelError, match="as 'nf4' needs"):
        load_base(str(folder), "auto", device="cpu")
    memory(monkeypatch, 6)
    check_room("x", folder, "nf4", CPU, torch.float32)
    with pytest.raises(ModelError, match="'int8'"):
        check_room("x", folder, "int8", CPU, torch.float32)


@pytest.mark.parametrize("quantization", BACKENDS)
def test_what_loading_stores_is_never_less_than_what_was_asked_for(quantization, tiny, monkeypatch):
    base = load_base(str(tiny), quantization, device="cpu")
    found = tensors(tiny)
    largest = max(4 * one.values for one in found if len(one.shape) == 2)
    asked = stored_bytes(found, {quantization}, torch.float32)
    assert 0.6 * base.report.bytes_after < asked <= base.report.bytes_after + largest
    monkeypatch.setattr(loading, "memory_limit", lambda: (base.report.bytes_after + largest,) * 2)
    check_room("x", tiny, quantization, CPU, torch.float32)
    monkeypatch.setattr(loading, "memory_limit", lambda: (asked - 1,) * 2)
    with pytest.raises(ModelError, match="needs at least"):
        check_room("x", tiny, quantization, CPU, torch.float32)


def test_what_is_in_doubt_is_not_counted(tmp_path):
    linear, embedding = {"language_model.model.layers.0.q_proj.weight": (64, 64)}, (1000, 64)
    head = {"language_model.lm_head.weight": embedding, "language_model.model.embed_tokens.weight": embedding}
    found = tensors(write(tmp_path / "a", linear | head | {"vision_tower.conv.weight": (8, 3, 4, 4)}))
    whole = 4 * (2 * 64000 + 384)
    packed = 4096 * 4.5 / 8 + 4 * 4096
    assert stored_bytes(found, {"nf4"}, torch.float32, tied=False) == whole + packed
    assert stored_bytes(found, {"nf4"}, torch.float32) == whole - 4 * 64000 + packed
    assert stored_bytes(found, {"nf4"}, torch.float32, tied=False, pruned=True) == whole
    assert stored_bytes(found, {"none", "nf4"}, torch.bfloat16, tied=False) == whole / 2 + packed
    assert stored_bytes(found, {"none"}, torch.bfloat16, tied=False) == whole / 2 + 2 * 4096


def test_files_that_are_not_loaded_are_not_counted(tmp_path):
    shape = {"a.weight": (8, 8)}
    write(tmp_path, shape, file="model-00001-of-00001.safetensors")
    write(tmp_path, shape | {"b.weight": (8, 8)}, file="consolidated.safetensors")
    assert tensors(tmp_path) == []
    index = {"weight_map": {"a.weight": "model-00001-of-00001.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert [one.name for one in tensors(tmp_path)] == ["a.weight"]


@pytest.mark.parametrize("damage", [b"garbage", b"\xff" * 64, (3).to_bytes(8, "little") + b"[1]"])
def test_what_cannot_be_read_is_left_to_loading(damage, tiny, tmp_path):
    target = tmp_path / "base"
    shutil.copytree(tiny, target)
    (target / "model.safetensors").write_bytes(damage)
    assert tensors(target) == []
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_base(str(target), "none")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(12, "Cannot allocate memory"),
        RuntimeError("unable to mmap 19500000000 bytes from file <model.safetensors>: Cannot allocate memory (12)"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
)
def test_a_system_that_gives_no_memory_is_not_a_checkpoint_that_is_none(error, tiny, monkeypatch):
    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(load.AutoModelForImageTextToText, "from_pretrained", refuse)
    with pytest.raises(ModelError, match=r"was given no memory while it was loaded .* raise the limit") as found:
        load_base(str(tiny), "none")
    assert "AutoModelForImageTextToText" not in str(found.value)


def test_the_look_takes_no_time(tiny):
    check_room("x", tiny, "auto", CPU, torch.float32)
    start = time.perf_counter()
    check_room("x", tiny, "auto", CPU, torch.float32)
    assert time.perf_counter() - start < 0.05


def test_an_unknown_backend_is_still_refused_as_such(tiny):
    with pytest.raises(QuantizationError, match="it is unknown"):
        load_base(str(tiny), "none", parts={"vision": "x"})


def test_on_a_gpu_its_own_memory_counts(tmp_path, monkeypatch):
    memory(monkeypatch, 0.001)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (4 * GIB, 16 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 2 * GIB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: GIB)
    folder, gpu = large(tmp_path / "base"), torch.device("cuda")
    with pytest.raises(ModelError, match=r"'nf4' needs at least 5\.4 GiB of memory on cuda, and 5\.0 of 16\.0"):
        check_room("x", folder, "auto", gpu, torch.bfloat16)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: GIB // 2)
    check_room("x", folder, "auto", gpu, torch.bfloat16)
