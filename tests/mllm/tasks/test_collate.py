from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers.processors import TemplateProcessing

from mllm.processing import ComposedProcessor
from mllm.tasks.collate import IGNORED, Batch, Collator
from mllm.tasks.example import Example, ImageSource
from mllm.testing import Tiny, tiny_composed, tiny_llava, tiny_qwen25vl, tiny_smolvlm
from tests.mllm.tasks.conftest import save_image
from umbel.errors import DataError, ModelError

QWEN_TEMPLATE = (
    "{% for m in messages %}user :{% for c in m['content'] %}{% if c['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ c['text'] }}{% endif %}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %} assistant :{% endif %}"
)


def _qwen() -> Tiny:
    tiny = tiny_qwen25vl()
    tiny.processor.chat_template = QWEN_TEMPLATE
    return tiny


TEXT_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] + ' : ' + m['content'] + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant :\\n' }}{% endif %}"
)
"""As language models bring it: it joins the content as a text and knows no images."""


def _templated() -> Tiny:
    tiny = tiny_composed()
    tiny.processor.tokenizer.chat_template = TEXT_TEMPLATE
    return tiny


FAMILIES = {
    "templated": _templated,
    "composed": tiny_composed,
    "llava": tiny_llava,
    "smolvlm": tiny_smolvlm,
    "qwen": _qwen,
}


@pytest.fixture(scope="module", params=list(FAMILIES))
def family(request: pytest.FixtureRequest) -> Tiny:
    return FAMILIES[request.param]()


@pytest.fixture
def images(tmp_path: Path) -> list[ImageSource]:
    return [ImageSource(save_image(tmp_path / f"{i}.png", seed=i)) for i in range(4)]


def _examples(images: Sequence[ImageSource], counts: Sequence[int]) -> list[Example]:
    rest = iter(images)
    texts = ["what colour is the shape?", "is there a red circle in the image?", "there is no square"]
    return [
        Example(tuple(next(rest) for _ in range(count)), texts[i % 3], ["red", "yes", "no no"][i % 3])
        for i, count in enumerate(counts)
    ]


def _logits(tiny: Tiny, batch: Batch) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = tiny.model(**batch.inputs).logits
    return logits


@pytest.mark.parametrize("counts", [[1, 1, 1], [1, 0, 2], [0, 0], [2]])
def test_labels_are_the_answer_and_the_end(family: Tiny, images: list[ImageSource], counts: list[int]) -> None:
    collator = Collator(family.processor)
    examples = _examples(images, counts)
    batch = collator(examples)
    assert (batch.size, batch.images_per_example) == (len(counts), counts)
    assert batch.labels.shape == batch.inputs["input_ids"].shape == batch.inputs["attention_mask"].shape
    eos = family.processor.tokenizer.eos_token_id
    for i, example in enumerate(examples):
        asked = batch.labels[i] != IGNORED
        assert batch.labels[i][asked].tolist() == [*_word_ids(family, example.answer), eos]
        assert torch.equal(batch.inputs["input_ids"][i][asked], batch.labels[i][asked])
        length = int(batch.inputs["attention_mask"][i].sum())
        assert bool(asked[length - 1])
        assert not bool(asked[length:].any())
    assert ("pixel_values" in batch.inputs) == (sum(counts) > 0)
    assert torch.isfinite(_logits(family, batch)).all()


def _word_ids(tiny: Tiny, text: str) -> list[int]:
    return [int(i) for i in tiny.processor.tokenizer.convert_tokens_to_ids(text.split())]


def test_a_row_means_the_same_alone_and_in_a_batch(family: Tiny, images: list[ImageSource]) -> None:
    collator = Collator(family.processor)
    examples = _examples(images, [1, 0, 2])
    together = collator(examples)
    for i, example in enumerate(examples):
        alone = collator([example])
        length = alone.labels.shape[1]
        assert torch.equal(together.labels[i, :length], alone.labels[0])
        assert torch.equal(together.inputs["input_ids"][i, :length], alone.inputs["input_ids"][0])
        torch.testing.assert_close(
            _logits(family, together)[i, :length], _logits(family, alone)[0], atol=2e-5, rtol=1e-4
        )


def test_prompts_are_what_training_rows_begin_with(family: Tiny, images: list[ImageSource]) -> None:
    collator = Collator(family.processor)
    examples = _examples(images, [1, 1, 1])
    batch, prompts = collator(examples), collator.prompts(examples)
    for i in range(3):
        prompt = prompts["input_ids"][i][prompts["attention_mask"][i].bool()]
        assert int(prompts["attention_mask"][i, -1]) == 1
        first = int((batch.labels[i] != IGNORED).nonzero()[0])
        assert torch.equal(batch.inputs["input_ids"][i, :first], prompt)
    assert torch.equal(prompts["pixel_values"], batch.inputs["pixel_values"])


def test_what_is_kept_equals_what_is_made_fresh(images: list[ImageSource]) -> None:
    tiny = tiny_composed()
    kept = [ImageSource(source.path, keep=True) for source in images]
    examples = _examples(kept, [1, 2, 0])
    warm, cold = Collator(tiny.processor), Collator(tiny.processor, cache_bytes=0)
    first, again, fresh = warm(examples), warm(examples), cold(examples)
    assert len(warm._pixels) == 3
    assert len(cold._pixels) == 0
    for other in (again, fresh):
        assert torch.equal(first.labels, other.labels)
        assert all(torch.equal(value, other.inputs[name]) for name, value in first.inputs.items())


def test_the_memory_of_pixels_is_bounded(images: list[ImageSource]) -> None:
    kept = [ImageSource(source.path, keep=True) for source in images]
    collator = Collator(tiny_composed().processor, cache_bytes=2 * 3 * 32 * 32 * 4)
    collator(_examples(kept, [1, 1, 1]))
    assert len(collator._pixels) == 2


def test_an_image_that_may_change_is_read_again(images: list[ImageSource]) -> None:
    collator = Collator(tiny_composed().processor)
    examples = _examples(images, [1])
    before = collator(examples).inputs["pixel_values"]
    save_image(images[0].path, seed=77)
    assert not torch.equal(collator(examples).inputs["pixel_values"], before)


def test_without_a_template_the_prompt_is_mark_line_end_question(images: list[ImageSource]) -> None:
    collator = Collator(tiny_composed().processor)
    [example] = _examples(images, [2])
    assert collator.prompt(example) == "<image>\n<image>\nwhat colour is the shape?"


def test_a_chat_template_is_used(images: list[ImageSource]) -> None:
    collator = Collator(_qwen().processor)
    [example] = _examples(images, [1])
    assert collator.prompt(example) == (
        "user :<|vision_start|><|image_pad|><|vision_end|>what colour is the shape? assistant :"
    )


def test_a_composed_model_is_asked_by_its_language_model_s_template(images: list[ImageSource], tmp_path: Path) -> None:
    tiny = _templated()
    tiny.save(tmp_path)
    collator = Collator(ComposedProcessor.from_pretrained(tmp_path))
    example = _examples(images, [2])[0]
    assert collator.prompt(example) == f"user : <image>\n<image>\n{example.question}\nassistant :\n"
    inputs = collator.prompts([example])
    assert inputs["pixel_values"].shape[0] == 2
    with torch.no_grad():
        assert torch.isfinite(tiny.model(**inputs).logits).all()


def test_a_template_that_fails_is_named(images: list[ImageSource]) -> None:
    tiny = tiny_composed()
    tiny.processor.tokenizer.chat_template = "{{ raise_exception('system first') }}"
    with pytest.raises(ModelError, match="system first"):
        Collator(tiny.processor).prompts(_examples(images, [1]))


def test_a_text_begins_as_its_tokenizer_begins_it(images: list[ImageSource]) -> None:
    """Llama's and Gemma's tokenizers write a beginning; the composed processor leaves special tokens to the prompt."""
    tiny = tiny_composed()
    tokenizer = tiny.processor.tokenizer
    example = _examples(images, [1])[0]
    assert Collator(tiny.processor).prompt(example).startswith("<image>")
    tokenizer._tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    batch = Collator(tiny.processor)([example])
    ids = batch.inputs["input_ids"][0].tolist()
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.bos_token_id) == 1
    assert ids[1] == tiny.processor.image_token_id


def test_an_empty_batch_is_refused() -> None:
    with pytest.raises(DataError, match="skip empty batches"):
        Collator(tiny_composed().processor)([])


def test_a_mark_inside_a_question_is_refused(images: list[ImageSource]) -> None:
    bad = Example((images[0],), "what is <image>?", "red")
    for tiny in (tiny_composed(), tiny_smolvlm()):
        with pytest.raises((DataError, ModelError), match=r"image"):
            Collator(tiny.processor)([bad])


def test_an_unreadable_image_is_named(tmp_path: Path) -> None:
    gone = Example((ImageSource(tmp_path / "gone.png", origin="train.jsonl, line 9"),), "what?", "red")
    with pytest.raises(DataError, match=r"gone.png \(train.jsonl, line 9\)"):
        Collator(tiny_composed().processor)([gone])


def test_a_processor_without_tokenizer_or_end_is_refused() -> None:
    with pytest.raises(ModelError, match="no processor with a tokenizer"):
        Collator(None)
    processor: Any = tiny_composed().processor
    processor.tokenizer.eos_token = None
    with pytest.raises(ModelError, match="end-of-sequence"):
        Collator(processor)
