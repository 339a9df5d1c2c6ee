import pytest
import safetensors.torch
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from mllm.checkpoint import resolve
from mllm.load import load_base
from mllm.modeling import ComposedForConditionalGeneration
from mllm.testing import WORDS, random_image
from mllm.testing_layouts import synthetic_checkpoint
from mllm.tokenizer import word_tokenizer
from mllm.zoo import NATIVE, SYSTEMS, store
from umbel.config.model import ModelConfig
from umbel.errors import ModelError


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    monkeypatch.setenv("UMBEL_HOME", str(tmp_path / "home"))


def test_a_name_and_a_size_are_all_it_takes():
    assert ModelConfig(name="bunny-v1").reference == "bunny-v1"
    assert ModelConfig(name="bunny-v1", size="tiny").reference == "bunny-v1:tiny"
    assert ModelConfig(name="bunny-v1", weights="/a,/b").reference == "bunny-v1=/a,/b"
    base = load_base("bunny-v1:tiny", "nf4")
    assert base.report.modules
    assert base.source == str(base.path)
    again = resolve("bunny-v1:tiny")
    assert again == base.path
    inputs = base.processor(["<image> what colour ?"], [[random_image(0)]])
    assert "<unk>" not in base.processor.decode(inputs["input_ids"][0])
    assert torch.isfinite(base.model(**inputs).logits).all()
    assert base.processor.image.mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("name", ["mini-gemini", "smolvlm"])
def test_tiny_bases_are_the_same_in_every_home(name, tmp_path, monkeypatch):
    first = resolve(f"{name}:tiny")
    monkeypatch.setenv("UMBEL_HOME", str(tmp_path / "other"))
    second = resolve(f"{name}:tiny")
    assert first != second
    for file in sorted(path.name for path in first.iterdir()):
        assert (first / file).read_bytes() == (second / file).read_bytes(), file


def test_published_weights_are_converted_once(tmp_path):
    words = word_tokenizer(WORDS)
    config = SYSTEMS["mobilevlm"].config("tiny", len(words))
    tensors = synthetic_checkpoint("mobilevlm", config)
    clip, own = tmp_path / "clip", tmp_path / "own"
    for folder in (clip, own):
        folder.mkdir()
        (folder / "config.json").write_text("{}")
    mine = {k: v for k, v in tensors.items() if k.startswith(("model.", "lm_head"))}
    safetensors.torch.save_file(mine, own / "model.safetensors")
    safetensors.torch.save_file({k: v for k, v in tensors.items() if k not in mine}, clip / "model.safetensors")
    words.save_pretrained(own)
    target = tmp_path / "made"
    target.mkdir()
    report = store.convert(SYSTEMS["mobilevlm"], [("", own), ("", clip)], target, config)
    assert report.whole
    model = AutoModelForImageTextToText.from_pretrained(target)
    assert type(model) is ComposedForConditionalGeneration
    assert torch.equal(model.projector.mlp[0].weight, tensors["model.mm_projector.model.mlp.1.weight"])
    inputs = AutoProcessor.from_pretrained(target)(["<image> red"], [[random_image(1)]])
    assert torch.isfinite(model(**inputs).logits).all()
    with pytest.raises(ModelError, match="missing"):
        store.convert(SYSTEMS["mobilevlm"], [("", own)], target, config)


def test_a_word_for_the_image_is_added_where_it_is_missing(tmp_path):
    config = SYSTEMS["karmavlm"].config("tiny", 32)
    tensors = synthetic_checkpoint("karmavlm", config)
    folder, target = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    target.mkdir()
    safetensors.torch.save_file(tensors, folder / "model.safetensors")
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    plain = Tokenizer(WordLevel({f"w{n}": n for n in range(32)}, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="w1", unk_token="w0").save_pretrained(folder)
    store.convert(SYSTEMS["karmavlm"], [("", folder)], target, config)
    model, processor = AutoModelForImageTextToText.from_pretrained(target), AutoProcessor.from_pretrained(target)
    assert processor.image_token_id == 32 == model.config.image_token_id
    assert model.get_input_embeddings().weight.shape[0] == 33
    assert torch.isfinite(model(**processor(["<image>"], [[random_image(1)]])).logits).all()


def test_every_native_family_has_a_tiny_form():
    assert set(store.native_makers()) == set(NATIVE)


def test_refusals(tmp_path):
    with pytest.raises(ModelError, match="Size 'small' of bunny-v1 is unknown"):
        resolve("bunny-v1:small")
    with pytest.raises(ModelError, match="takes no weights in this form"):
        resolve("qwen2_vl=/x")
    with pytest.raises(ModelError, match="no published weights to fetch"):
        resolve("mm1-3b-moe")
    with pytest.raises(ModelError, match="neither demo nor in the zoo"):
        resolve("bunny-v7")
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    safetensors.torch.save_file({"a": torch.ones(1)}, folder / "model.safetensors")
    with pytest.raises(ModelError, match="holds no tokenizer"):
        resolve(f"bunny-v1={folder}")
    assert store.split_name("demo") is None
    assert store.locate("smolvlm", lambda name: tmp_path) == NATIVE["smolvlm"].hub
