import numpy as np
import pytest
import torch
from PIL import Image

from mllm.images import ImageOptions
from mllm.processing import ComposedProcessor
from mllm.testing import random_image, tiny_composed
from mllm.tokenizer import word_tokenizer
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
