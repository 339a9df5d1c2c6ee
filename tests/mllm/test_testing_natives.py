"""Further families in their tiny form: whole, with a processor, and answering as generate would without a cache."""

import pytest
import torch

from client.losses import example_losses
from mllm.inference import Answerer
from mllm.load import load_base
from mllm.lora import attach_lora
from mllm.rows import row_map, select_examples
from mllm.tasks.collate import Collator
from mllm.tasks.example import Example, ImageSource
from mllm.testing import random_image
from mllm.testing_natives import NATIVES
from mllm.video import frame_sources
from mllm.zoo import NATIVE
from mllm.zoo.store import native_makers
from privacy.clipping.make import make_engine
from umbel.config.model import LoraConfig
from umbel.errors import ModelError


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
    moving = asked[2]
    if name == "blip_2":
        with pytest.raises(ModelError, match="each text needs an image"):
            collator(asked)
        asked = asked[1:]
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
        turned = collator([Example(video[::-1], moving.question, moving.answer)])
        assert not torch.allclose(base.model(**turned.inputs).logits[0, -1], alone_logits(base, collator, moving))


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


def test_tiles_of_llava_onevision_belong_to_their_example():
    """One wide image is three views, one small two, several one each; what does not fit together is refused."""
    tiny = native_makers()["llava_onevision"]()
    wide, small = random_image(0, 64, 24), random_image(1)
    made = tiny.processor(
        text=["<image> what ?", "yes", "<image> <image> is there ?", "<image> red"],
        images=[[wide], [], [small, wide], [small]],
        padding=True,
        padding_side="right",
        return_tensors="pt",
    )
    inputs, counts = dict(made), [1, 0, 2, 1]
    rows = row_map(tiny.model, inputs, counts)
    owners = [0, 0, 0, 2, 2, 3, 3]
    for layer in ("model.vision_tower.encoder.layers.0", "model.multi_modal_projector.linear_1"):
        assert rows.rows_of(layer, (7, 16, 64)).owners.tolist() == owners
    with torch.no_grad():
        whole = tiny.model(**inputs).logits
        for chosen in ([0], [1], [2], [3], [0, 2], [1, 3]):
            part, kept = select_examples(tiny.model, inputs, counts, chosen)
            assert kept == [counts[i] for i in chosen]
            row_map(tiny.model, part, kept)
            found = tiny.model(**part).logits
            mask = part["attention_mask"].bool()
            assert torch.allclose(found[mask], whole[chosen][mask], atol=1e-5)
    with pytest.raises(ModelError, match="a list of images for each text"):
        row_map(tiny.model, inputs, [1, 1, 1, 1])
    with pytest.raises(ModelError, match="placeholders"):
        row_map(tiny.model, inputs | {"input_ids": inputs["input_ids"].flip(0)}, counts)
    with pytest.raises(ModelError, match="image_sizes"):
        row_map(tiny.model, {key: value for key, value in inputs.items() if key != "image_sizes"}, counts)


def test_large_images_of_llava_onevision_are_counted_as_the_model_shrinks_them():
    tiny = native_makers()["llava_onevision"]()
    tiny.model.config.vision_aspect_ratio = tiny.processor.vision_aspect_ratio = "anyres_max_1"
    made = tiny.processor(text=["<image> red"], images=[[random_image(0, 64, 64)]], return_tensors="pt")
    rows = row_map(tiny.model, dict(made), [1])
    assert rows.rows_of("model.vision_tower.encoder", (5, 16, 64)).owners.tolist() == [0] * 5
    with torch.no_grad():
        assert torch.isfinite(tiny.model(**made).logits).all()


def test_blip_2_reads_its_images_before_the_text():
    """As the published processor writes one image, before the token that begins a text."""
    tiny = native_makers()["blip_2"]()
    processor, image = tiny.processor, random_image(0)
    made = processor(text=["<image>\nwhat ?", "is <image> <image> red ?"], images=[image] * 3, padding=True)
    token = tiny.model.config.image_token_id
    assert [row[:8] == [token] * 8 for row in made["input_ids"]] == [False, True]
    assert made["input_ids"][0][:4] == [token] * 4
    assert [row.count(token) for row in made["input_ids"]] == [4, 8]
    theirs = type(processor).__mro__[1].__call__(processor, images=image, text="what ?")
    (ours,) = processor(text="<image>what ?", images=image)["input_ids"]
    assert ours == theirs["input_ids"][0]
