from collections.abc import Iterator

import pytest
import torch

from mllm.bases import demo
from mllm.bases.recipe import Recipe
from mllm.tasks import easy_vqa
from mllm.tasks.base import MemorySet
from mllm.tasks.collate import Collator
from mllm.tasks.example import Example, ImageSource
from umbel.errors import DataError, ModelError

TINY = Recipe(encoder_steps=3, encoder_batch=8, joint_steps=3, joint_batch=4, channels=(8, 16, 64), width=64, layers=1)
SILENT: demo.Progress = lambda stage, done, total: None  # noqa: E731


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = easy_vqa.read_split("train")[:600]
    monkeypatch.setattr(easy_vqa, "read_split", lambda split: rows)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(1)


def test_training_sees_no_private_image_and_no_private_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    easy_vqa.read_split("train")  # telling public from private looks at all of them; training must not
    opened: set[ImageSource] = set()
    answers: set[str] = set()
    open_image, answer_ids = ImageSource.open, Collator.answer_ids

    def watch_image(self: ImageSource) -> object:
        opened.add(self)
        return open_image(self)

    def watch_answer(self: Collator, answer: str, prompt: str) -> list[int]:
        answers.add(answer)
        return answer_ids(self, answer, prompt)

    monkeypatch.setattr(ImageSource, "open", watch_image)
    monkeypatch.setattr(Collator, "answer_ids", watch_answer)
    demo.train(Recipe(**{**_fields(TINY), "joint_batch": 64}), SILENT)
    monkeypatch.undo()
    assert len(opened) == 2495
    assert {easy_vqa.colour_of(source) for source in opened} == easy_vqa.PUBLIC_COLOURS
    assert all("/train/" in source.path.as_posix() for source in opened)
    assert answers
    assert not answers & easy_vqa.PRIVATE_COLOURS


def test_a_private_image_among_the_public_ones_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    examples = list(easy_vqa.read_split("train")[:2000])
    at = next(i for i, e in enumerate(examples) if easy_vqa.is_private(e))
    leaked = examples[at]
    examples[at] = Example(leaked.images, leaked.question, "no", {**leaked.meta, "colour": "red"})
    monkeypatch.setattr(easy_vqa, "read_split", lambda split: tuple(examples))
    with pytest.raises(DataError, match="holds a private image"):
        demo.public_examples()


def test_all_thirteen_answers_can_be_said_in_one_word() -> None:
    vocabulary = demo.words(MemorySet(easy_vqa.read_split("test")[:50]))
    tokenizer = demo.untrained(TINY, vocabulary).processor.tokenizer
    ids = [tokenizer(answer, add_special_tokens=False)["input_ids"] for answer in easy_vqa.ANSWERS]
    assert all(len(row) == 1 for row in ids)
    assert tokenizer.unk_token_id not in {row[0] for row in ids}


@pytest.mark.usefixtures("few")
def test_the_same_recipe_gives_the_same_weights_and_another_seed_others() -> None:
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = demo.train(TINY, SILENT).model.state_dict()
    assert torch.equal(torch.random.get_rng_state(), before), "the caller's generator moved"
    assert torch.get_num_threads() == 1
    torch.manual_seed(2)
    again = demo.train(TINY, SILENT).model.state_dict()
    other = demo.train(Recipe(**{**_fields(TINY), "seed": 8}), SILENT).model.state_dict()
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert any(not torch.equal(value, other[name]) for name, value in first.items())


@pytest.mark.usefixtures("few")
def test_every_part_is_trained_and_progress_is_told() -> None:
    told: list[tuple[str, int, int]] = []
    made = demo.train(TINY, lambda *step: told.append(step))
    assert told == [(stage, n, 3) for stage in ("encoder", "joint") for n in (1, 2, 3)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(TINY.seed)
        fresh = demo.untrained(TINY, demo.words(demo.public_examples())).model.state_dict()
    for part in ("vision_tower", "projector", "language_model"):
        moved = [name for name, value in made.model.named_parameters() if not torch.equal(value, fresh[name])]
        assert any(name.startswith(part) for name in moved), part


@pytest.mark.usefixtures("few")
def test_divergence_is_one_sentence() -> None:
    with pytest.raises(ModelError, match="diverged"):
        demo.train(Recipe(**{**_fields(TINY), "encoder_rate": 1e30, "encoder_steps": 20}), SILENT)


def test_the_hash_covers_recipe_and_data() -> None:
    base = Recipe().hash("data")
    assert Recipe().hash("data") == base
    assert Recipe().hash("other") != base
    for field in _fields(Recipe()):
        changed = {**_fields(Recipe()), field: 5}
        assert Recipe(**changed).hash("data") != base, field


def _fields(recipe: Recipe) -> dict:  # type: ignore[type-arg]
    return {name: getattr(recipe, name) for name in recipe.__slots__}
