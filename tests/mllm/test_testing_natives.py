"""Further families in their tiny form: whole, with a processor, and answering as generate would without a cache."""

import pytest
import torch

from client.losses import example_losses
from mllm.inference import Answerer
from mllm.load import load_base
from mllm.lora import attach_lora
from mllm.rows import row_map
from mllm.tasks.collate import Collator
from mllm.tasks.example import Example, ImageSource
from mllm.testing import random_image
from mllm.testing_natives import NATIVES
from mllm.video import frame_sources
from mllm.zoo import NATIVE
from mllm.zoo.store import native_makers
from privacy.clipping.make import make_engine
from umbel.config.model import LoraConfig


def test_every_native_family_has_a_tiny_form():
    assert {name for name, family in NATIVE.items() if family.processor} == set(NATIVE)
    assert {"llava", "smolvlm", "qwen2_5_vl", *NATIVES} == set(NATIVE)


@pytest.fixture(scope="module", params=NATIVES)
def family(request, tmp_path_factory):
    torch.set_num_threads(1)
    tiny = NATIVES[request.param]()
    folder = tmp_path_factory.mktemp(request.param)
    tiny.save(folder)
    for number in range(3):
        random_image(number).save(folder / f"{number}.png")
    return tiny, folder, load_base(str(folder), "none")


def examples(folder):
    words = ["what colour ?", "is there a red circle in the image ?", "yes"]
    return [Example((ImageSource(folder / f"{n}.png"),), text, "red") for n, text in enumerate(words)]


def test_saving_keeps_model_and_processor(family):
    tiny, _, base = family
    batch = tiny.batch([1, 2, 1])
    with torch.no_grad():
        assert torch.allclose(tiny.model(**batch.inputs).logits, base.model(**batch.inputs).logits, atol=1e-6)
    words = "what is <unk> there ?"
    assert tiny.processor.tokenizer(words)["input_ids"] == base.processor.tokenizer(words)["input_ids"]


def test_answers_with_a_cache_are_those_without(family):
    _, folder, base = family
    collator, asked = Collator(base.processor), examples(folder)
    found = [Answerer(base.model, collator, most_tokens=5, cache=cache).answer(asked) for cache in (True, False)]
    for one, other in zip(*found, strict=True):
        assert (one.text, one.tokens) == (other.text, other.tokens)
        assert one.probability == pytest.approx(other.probability, rel=1e-3)


def test_book_keeping_takes_its_examples(family):
    """Norms equal those of examples one by one."""
    _, folder, base = family
    collator, asked = Collator(base.processor), examples(folder)
    tuned = attach_lora(base, LoraConfig(rank=2), seed=0)
    try:
        generator = torch.Generator().manual_seed(1)
        for parameter in tuned.parameters.values():
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
        norms = []
        for kind in ("bookkeeping", "loop"):
            engine, batch = make_engine(kind, tuned.model, tuned.parameters, 0.1), collator(asked)
            rows = row_map(tuned.model, batch.inputs, batch.images_per_example) if kind == "bookkeeping" else None
            norms.append(
                engine.accumulate(
                    lambda part: example_losses(tuned.model, part), batch, rows, 3, lambda _, i: collator([asked[i]])
                ).norms
            )
            engine.take()
        assert torch.allclose(*norms, rtol=1e-3)
    finally:
        tuned.detach()


@pytest.mark.parametrize("name", NATIVE)
def test_none_one_and_several_images_go_together(name, tmp_path):
    """Each row is what it would be alone, whatever its images, a video's frames among them; their order matters."""
    native_makers()[name]().save(tmp_path)
    base = load_base(str(tmp_path), "none")
    frames = [random_image(number) for number in range(3)]
    frames[0].save(tmp_path / "one.png")
    frames[0].save(tmp_path / "all.gif", save_all=True, append_images=frames[1:])
    one, video = ImageSource(tmp_path / "one.png"), frame_sources(tmp_path / "all.gif", 3)
    assert len(video) == 3
    collator = Collator(base.processor)
    asked = [
        Example((), "what colour ?", "red"),
        Example((one,), "is there a circle ?", "yes"),
        Example(video, "what is the shape in the image ?", "square"),
        Example((one, one, video[1]), "what is there ?", "red"),
    ]
    with torch.no_grad():
        batch = collator(asked)
        whole = base.model(**batch.inputs).logits
        for row, example in enumerate(asked):
            if name == "paligemma" and not example.images:
                continue  # its processor takes no batch without any image
            alone = base.model(**collator([example]).inputs).logits[0]
            mask = batch.inputs["attention_mask"][row].bool()
            assert torch.isfinite(alone).all()
            assert torch.allclose(whole[row, mask], alone, atol=1e-5)
        turned = collator([Example(video[::-1], asked[2].question, asked[2].answer)])
        assert not torch.allclose(base.model(**turned.inputs).logits[0, -1], alone_logits(base, collator, asked[2]))


def alone_logits(base, collator, example):
    """Of the last place of one example."""
    return base.model(**collator([example]).inputs).logits[0, -1]


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_qwens_images_stand_between_their_marks(name):
    """As the published templates write them."""
    processor = native_makers()[name]().processor
    turns = [{"role": "user", "content": [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "what ?"}]}]
    text = processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    mark = "<|vision_start|><|image_pad|><|vision_end|>"
    assert text == f"user : {mark}{mark}what ? assistant :"
