import numpy as np
import pytest
import torch
from PIL import Image

from mllm.tasks.collate import Batch
from mllm.tasks.example import Example, ImageSource
from mllm.testing import tiny_composed, tiny_llava, tiny_qwen25vl, tiny_smolvlm
from simulations.batched.collation import KeptCollator, join, kept_collator
from tests.simulations.batched.lanes import setting
from umbel.errors import DataError

MODELS = {
    "llava": tiny_llava,
    "smolvlm": tiny_smolvlm,
    "tiles": lambda: tiny_smolvlm(tiles=True),
    "qwen": tiny_qwen25vl,
    "composed": tiny_composed,
}


def same(a: Batch, b: Batch) -> bool:
    return (
        a.inputs.keys() == b.inputs.keys()
        and all(torch.equal(a.inputs[name], b.inputs[name]) for name in a.inputs)
        and torch.equal(a.labels, b.labels)
        and (a.images_per_example, a.size) == (b.images_per_example, b.size)
    )


@pytest.mark.parametrize("name", MODELS)
def test_joined_batches_are_the_processors_own(name, pictures):
    case = setting(MODELS[name](), pictures, text_only=(2, 5))
    kept = KeptCollator(case.collator)
    for indices in ([0, 1], [1, 2, 3], [5, 4, 0], [2, 5], [0]):
        examples = [case.examples[i] for i in indices]
        assert same(kept(examples), case.collator(examples))
        assert same(kept(examples), case.collator(examples))


def test_an_example_is_processed_once(pictures, monkeypatch):
    case = setting(tiny_llava(), pictures)
    kept, calls, real = KeptCollator(case.collator), [], type(case.collator).__call__
    monkeypatch.setattr(type(case.collator), "__call__", lambda self, e: calls.append(len(e)) or real(self, e))
    for _ in range(3):
        kept([case.examples[0], case.examples[1]])
    assert calls == [1, 1]
    full = KeptCollator(case.collator, budget=0)
    for _ in range(2):
        full([case.examples[0]])
    assert calls == [1, 1, 1, 1]


def test_files_that_may_change_are_not_kept(tmp_path):
    case = setting(tiny_llava(), tmp_path)
    example = Example((ImageSource(tmp_path / "0.png"),), "what colour is the shape ?", "red")
    kept = KeptCollator(case.collator)
    before = kept([example]).inputs["pixel_values"]
    Image.fromarray(np.zeros((32, 32, 3), dtype=np.uint8)).save(tmp_path / "0.png")
    assert not torch.equal(kept([example]).inputs["pixel_values"], before)


@pytest.mark.parametrize("name", ["llava", "composed"])
def test_a_file_that_did_not_change_is_encoded_once(name, pictures, monkeypatch):
    case = setting(MODELS[name](), pictures)
    example = Example((ImageSource(pictures / "0.png"),), "what colour is the shape ?", "red")
    kept, calls, real = KeptCollator(case.collator), [], type(case.collator).__call__
    monkeypatch.setattr(type(case.collator), "__call__", lambda self, e: calls.append(len(e)) or real(self, e))
    for _ in range(3):
        kept([example, example])
    assert calls == [1]
    missing = Example((ImageSource(pictures / "none.png"),), "what colour is the shape ?", "red")
    for _ in range(2):
        with pytest.raises(DataError, match="does not exist"):
            kept([missing])


def test_what_cannot_be_joined_is_left_to_the_processor():
    def batch(**inputs):
        ids = torch.ones(1, 3, dtype=torch.int64)
        return Batch({"input_ids": ids, "attention_mask": ids, **inputs}, ids, [1], 1)

    assert join([batch(), batch(odd=torch.zeros(7))], 0) is None
    sizes = [batch(pixel_values=torch.zeros(1, 1, 3, side, side)) for side in (4, 8)]
    assert join(sizes, 0) is None
    assert join([batch(pixel_values=torch.zeros(1, 3, side, side)) for side in (4, 8)], 0) is None
    assert join([batch(), batch()], 0).size == 2


def test_one_kept_collator_a_model(pictures):
    a, b = setting(tiny_llava(), pictures).collator, setting(tiny_llava(), pictures).collator
    assert kept_collator(a) is kept_collator(a)
    assert kept_collator(b) is not kept_collator(a)
