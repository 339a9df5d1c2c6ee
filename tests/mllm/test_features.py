import pytest
import torch

from mllm.features import MemoryFeatures, SealedFeatures, attach_feature_cache, tower_hash
from mllm.testing import tiny_composed, tiny_llava
from umbel.errors import ModelError

KEY = bytes(range(32))


def pixels(count=3, seed=0):
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=["memory", "disk"])
def store(request, tmp_path):
    return MemoryFeatures(1 << 20) if request.param == "memory" else SealedFeatures(tmp_path / "f", KEY, 1 << 20)


def test_features_are_the_towers_and_each_image_is_encoded_once(store):
    tiny = tiny_composed("siglip")
    tiny.model.requires_grad_(False)
    expected = tiny.model.get_image_features(pixels())
    cached = attach_feature_cache(tiny.model, store)
    assert torch.equal(tiny.model.get_image_features(pixels()), expected)
    assert (cached.hits, cached.misses) == (0, 3)
    again = tiny.model.get_image_features(torch.cat([pixels()[1:], pixels(1, seed=9)]))
    assert torch.equal(again[:2], expected[1:])
    assert (cached.hits, cached.misses) == (2, 4)
    batch = tiny.batch([1, 0, 2])
    assert torch.isfinite(tiny.model(**batch.inputs).logits).all()


def test_a_trained_tower_and_other_models_are_refused(store):
    tiny = tiny_composed("siglip")
    attach_feature_cache(tiny.model, store)
    with pytest.raises(ModelError, match="is being trained"):
        tiny.model.get_image_features(pixels())
    with pytest.raises(ModelError, match=r"set model\.feature-cache"):
        attach_feature_cache(tiny_llava().model, store)


def test_a_full_store_keeps_computing(tmp_path):
    tiny = tiny_composed("siglip")
    tiny.model.requires_grad_(False)
    cached = attach_feature_cache(tiny.model, MemoryFeatures(1))
    for _ in range(2):
        tiny.model.get_image_features(pixels())
    assert (cached.hits, cached.misses) == (0, 6)
    full = SealedFeatures(tmp_path / "f", KEY, 1)
    full.put(b"a", torch.ones(4))
    assert full.get(b"a") is None


def test_files_tell_nothing_and_a_damaged_one_is_missing(tmp_path):
    store, value = SealedFeatures(tmp_path, KEY, 1 << 20), torch.full((4, 8), 3.25)
    store.put(b"image", value)
    (path,) = tmp_path.iterdir()
    blob = path.read_bytes()
    assert path.stat().st_mode & 0o077 == 0
    assert value.numpy().tobytes()[:8] not in blob
    assert b"image".hex() not in path.name
    assert torch.equal(SealedFeatures(tmp_path, KEY, 1 << 20).get(b"image"), value)
    assert SealedFeatures(tmp_path, bytes(32), 1 << 20).get(b"image") is None
    path.write_bytes(blob[:-1] + bytes([blob[-1] ^ 1]))
    assert store.get(b"image") is None
    path.write_bytes(b"")
    assert store.get(b"image") is None


def test_another_tower_or_layer_has_other_names():
    assert tower_hash("a", "nf4") != tower_hash("a", "int8")
    assert tower_hash("a", "nf4") != tower_hash("b", "nf4")
