from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from mllm.images import ImageOptions
from mllm.processing import ComposedProcessor, check_rows, context_limit, limit_context
from mllm.tasks.collate import Collator
from mllm.tasks.example import Example, ImageSource
from mllm.testing import random_image, tiny_composed, tiny_llava, tiny_qwen25vl
from mllm.tokenizer import word_tokenizer
from mllm.zoo.store import native_makers
from umbel.errors import DataError, ModelError


@pytest.fixture(scope="module")
def processor():
    return tiny_composed().processor


def test_expands_marks_and_pads_on_either_side(processor):
    texts, images = ["<image> red", "yes"], [[random_image(0)], []]
    for side in ("right", "left"):
        batch = processor(texts, images, padding_side=side)
        assert batch["input_ids"].shape == (2, 17)
        assert (batch["input_ids"][0] == processor.image_token_id).sum() == 16
        assert batch["attention_mask"].sum(1).tolist() == [17, 1]
        assert batch["attention_mask"][1, 0 if side == "right" else -1] == 1
        assert batch["pixel_values"].shape == (1, 3, 32, 32)
    assert "pixel_values" not in processor(["yes"])
    assert processor("yes")["input_ids"].shape == (1, 1)
    assert processor([""])["attention_mask"].sum() == 0


def test_decoding(processor):
    ids = processor(["What COLOUR is the shape ?"])["input_ids"]
    assert processor.batch_decode(ids) == ["what colour is the shape ?"]
    marked = processor(["<image> red purple"], [[random_image(0)]])["input_ids"][0]
    assert processor.decode(marked, skip_special_tokens=True).strip() == "red"


def test_the_same_words_give_the_same_ids():
    one, two = word_tokenizer(["b", "a", "C"]), word_tokenizer(["c", "a", "b", "a"])
    assert one.get_vocab() == two.get_vocab()
    assert [one.convert_tokens_to_ids(t) for t in ("<pad>", "<s>", "</s>", "<unk>", "<image>")] == [0, 1, 2, 3, 4]


def test_pixels_by_hand():
    image = Image.new("RGB", (4, 4), (255, 0, 51))
    pixels = ImageOptions(4, mean=(0.5, 0.5, 0.0), std=(0.5, 0.25, 1.0)).pixels(image)
    assert pixels.dtype == np.float32
    assert np.allclose(pixels[:, 0, 0], [1.0, -2.0, 0.2], atol=1e-6)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "CMYK"])
def test_any_image_mode(mode):
    assert ImageOptions(8).pixels(random_image(0).convert(mode)).shape == (3, 8, 8)


def test_fits():
    wide = Image.new("RGB", (40, 20), (255, 255, 255))
    padded = ImageOptions(8, fit="pad", mean=(0, 0, 0), std=(1, 1, 1)).pixels(wide)
    assert padded[:, :2].max() == 0
    assert padded[:, 2:6].min() == 1
    half = Image.fromarray(
        np.concatenate([np.zeros((20, 10, 3)), np.full((20, 20, 3), 255), np.zeros((20, 10, 3))], 1).astype("uint8")
    )
    cropped = ImageOptions(20, fit="crop", mean=(0, 0, 0), std=(1, 1, 1)).pixels(half)
    assert cropped.min() == 1
    assert ImageOptions(8, fit="stretch").pixels(Image.new("RGB", (1, 500))).shape == (3, 8, 8)
    assert ImageOptions(8, fit="pad").pixels(Image.new("RGB", (1, 500))).shape == (3, 8, 8)


def test_save_and_load(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    again = ComposedProcessor.from_pretrained(tmp_path)
    texts, images = ["<image> red ?", "no"], [[random_image(3, 50, 20)], []]
    one, two = processor(texts, images), again(texts, images)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[k], two[k]) for k in one)
    (tmp_path / "processor_config.json").write_text("{}")
    with pytest.raises(ModelError, match="cannot be read"):
        ComposedProcessor.from_pretrained(tmp_path)
    with pytest.raises(ModelError, match="cannot be read"):
        ComposedProcessor.from_pretrained(tmp_path / "nowhere")


def test_refusals(processor):
    image = random_image(0)
    with pytest.raises(DataError, match="one mark for each image"):
        processor(["red"], [[image]])
    with pytest.raises(DataError, match="one mark for each image"):
        processor(["<image> <image>"], [[image]])
    with pytest.raises(DataError, match="one list a text"):
        processor(["<image>", "no"], [[image]])
    with pytest.raises(DataError, match="at least one example"):
        processor([])
    with pytest.raises(DataError, match="use 'right' or 'left'"):
        processor(["no"], padding_side="top")
    with pytest.raises(DataError, match="use 'pt'"):
        processor(["no"], return_tensors="np")
    with pytest.raises(ModelError, match="choose stretch, pad or crop"):
        ImageOptions(8, fit="squeeze")
    with pytest.raises(ModelError, match="positive"):
        ImageOptions(8, std=(0.5, 0.0, 0.5))
    config = tiny_composed().model.config
    config.image_token_id = 7
    with pytest.raises(ModelError, match="set image_token_id"):
        ComposedProcessor.for_config(config, processor.tokenizer)
    with pytest.raises(ModelError, match="add both"):
        ComposedProcessor(processor.tokenizer, ImageOptions(8), 4, image_token="<picture>")
    with pytest.raises(ModelError, match="at least 1"):
        ComposedProcessor(processor.tokenizer, ImageOptions(8), 0)


class TestContext:
    """A row beyond the language model's positions is refused: it would be answered with garbage."""

    @pytest.fixture(params=["composed", "llava", "qwen25vl", "peft"])
    def limited(self, request):
        tiny = {"llava": tiny_llava, "qwen25vl": tiny_qwen25vl}.get(request.param, tiny_composed)()
        tiny.model.config.text_config.max_position_embeddings = 40
        limit_context(tiny.model)
        if request.param == "peft":
            from peft import LoraConfig, get_peft_model

            wrapped = get_peft_model(tiny.model, LoraConfig(target_modules=["q_proj"]))
            return SimpleNamespace(model=wrapped, batch=tiny.batch)
        return tiny

    def test_training_rows(self, limited):
        fits = limited.batch([1]).inputs
        limited.model(**fits)
        room = 40 - fits["input_ids"].shape[1]
        whole, tokens = fits["input_ids"].repeat(1, 1), int((fits["input_ids"] == self.image_token(limited)).sum())
        for more in (room, room + 1):
            ids = torch.cat([whole, whole.new_full((1, more), 5)], dim=1)
            inputs = fits | {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            inputs.pop("mm_token_type_ids", None)
            if more == room:
                limited.model(**inputs)
                continue
            said = rf"has 41 tokens, {tokens} of them image tokens, and the language model takes at most 40: "
            with pytest.raises(DataError, match=said + r".*task\.frames.*model\.tokens .* shorten the text"):
                limited.model(**inputs)

    @staticmethod
    def image_token(tiny):
        config = tiny.model.config
        return getattr(config, "image_token_id", None) or config.image_token_index

    def test_padding_is_no_token(self, limited):
        ids = torch.full((2, 45), 5)
        mask = torch.ones_like(ids)
        mask[0, :30], mask[1, 40:] = 0, 0
        limited.model(input_ids=ids, attention_mask=mask)
        mask[1, 40] = 1
        with pytest.raises(DataError, match="41 tokens, 0 of them"):
            limited.model(input_ids=ids, attention_mask=mask)
        with pytest.raises(DataError, match="45 tokens"):
            limited.model(input_ids=ids)

    @pytest.mark.parametrize("cache", [True, False])
    def test_answers_count(self, limited, cache):
        ids = torch.full((1, 38), 5)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "do_sample": False, "eos_token_id": None}
        assert limited.model.generate(**inputs, max_new_tokens=3, use_cache=cache).shape == (1, 41)
        with pytest.raises(DataError, match="41 tokens"):
            limited.model.generate(**inputs, max_new_tokens=5, use_cache=cache)

    def test_a_state_has_no_limit(self):
        tiny = tiny_composed("siglip", "mlp", "mamba")
        assert context_limit(tiny.model.config) is None
        limit_context(tiny.model)
        ids = torch.full((1, 1500), 5)
        with torch.no_grad():
            assert tiny.model(input_ids=ids).logits.shape[1] == 1500
        check_rows(tiny.model, Collator(tiny.processor), [Example((), "what " * 5000, "red")])

    @pytest.mark.parametrize("family", native_makers())
    def test_every_family_says_how_much_it_takes(self, family):
        assert context_limit(native_makers()[family]().model.config) in (256, 1024)

    def test_rows_are_counted_before_anything_is_paid_for(self, tmp_path):
        tiny = tiny_composed()
        random_image(0).save(tmp_path / "a.png")
        image, collator = ImageSource(tmp_path / "a.png", origin="train.jsonl, line 7"), Collator(tiny.processor)

        def example(words, images=1):
            return Example((image,) * images, "what " * words, "red")

        for words, images in ((3, 1), (1000, 1), (3, 60)):  # and as many as the batch has
            row = collator([example(words, images)]).inputs["input_ids"].shape[1]
            tiny.model.config.text_config.max_position_embeddings = row
            check_rows(tiny.model, collator, [example(words, images)])
            tiny.model.config.text_config.max_position_embeddings = row - 1
            said = (
                rf"The row of train\.jsonl, line 7 has {row} tokens, {16 * images} of them image tokens, .* {row - 1}:"
            )
            with pytest.raises(DataError, match=said):
                check_rows(tiny.model, collator, [example(0), example(words, images)])

    def test_of_other_processors_the_text_is_counted(self):
        tiny = tiny_llava()
        collator = Collator(tiny.processor)
        check_rows(tiny.model, collator, [Example((), "what " * 200, "red")])
        with pytest.raises(DataError, match=r"A row has 5.* tokens and the language model takes"):
            check_rows(tiny.model, collator, [Example((), "what " * 5000, "red")])
