from collections import Counter

import numpy as np
import pytest

from mllm.tasks import easy_vqa
from mllm.tasks.base import Task
from mllm.tasks.load import load_task
from umbel.config import TaskConfig
from umbel.errors import DataError


@pytest.fixture(scope="module")
def task() -> Task:
    return load_task(TaskConfig())


def test_the_published_set_is_divided_by_colour(task: Task) -> None:
    assert len(task.train) == 14506
    assert {name: len(examples) for name, examples in task.evaluation.items()} == {"private": 3705, "public": 5968}
    assert task.pretrain is not None
    assert len(task.train) + len(task.pretrain) == 38575
    assert len({e.meta["image"] for e in task.train}) == 1505
    assert len({e.meta["image"] for e in task.evaluation["private"]}) == 386
    assert task.headline == "private"
    answers = Counter(e.answer for s in (task.train, task.pretrain, *task.evaluation.values()) for e in s)
    assert set(answers) == set(easy_vqa.ANSWERS)


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_colour_by_question_is_the_colour_by_pixel(split: str) -> None:
    seen = {e.meta["image"]: e for e in easy_vqa.read_split(split)}
    wrong = [name for name, e in seen.items() if easy_vqa.colour_of(e.images[0]) != e.meta["colour"]]
    assert wrong == []


def test_what_is_said_about_an_image_fits_its_answers() -> None:
    for example in easy_vqa.read_split("test"):
        if example.answer in easy_vqa.PALETTE:
            assert example.answer == example.meta["colour"]
        elif example.answer in easy_vqa.SHAPES:
            assert example.answer == example.meta["shape"]
        else:
            words = set(example.question.rstrip("?").split())
            negated = bool({"not", "no"} & words)
            for kind, known in (("colour", easy_vqa.PALETTE), ("shape", easy_vqa.SHAPES)):
                for named in words & set(known):
                    if example.meta[kind] in known:
                        truth = (example.meta[kind] == named) != negated
                        assert example.answer == ("yes" if truth else "no")


def test_the_families_are_the_eight(task: Task) -> None:
    found = Counter(task.question_type(e) for e in task.evaluation["private"])
    assert set(found) == {name for _, name in easy_vqa._FAMILIES}
    assert {e.answer for e in task.train if task.question_type(e) == "what colour"} == easy_vqa.PRIVATE_COLOURS


def test_no_private_image_is_public_training_data(task: Task) -> None:
    assert task.pretrain is not None
    public = {e.images[0].path for e in task.pretrain}
    assert public.isdisjoint({e.images[0].path for e in task.train})
    assert not {e.answer for e in task.pretrain} & easy_vqa.PRIVATE_COLOURS


@pytest.mark.parametrize("kind", ["iid", "dirichlet", "question-type"])
def test_an_image_lies_at_one_client(task: Task, kind: str) -> None:
    divided = load_task(TaskConfig(partition=kind))
    parts = divided.partition(20, 0)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(task.train)))
    assert min(map(len, parts)) >= 16
    owner: dict[str, int] = {}
    for client, part in enumerate(parts):
        for i in part:
            assert owner.setdefault(task.train[int(i)].meta["image"], client) == client


def test_the_dirichlet_partition_skews_colours(task: Task) -> None:
    shares = [
        max(Counter(e.meta["colour"] for e in task.client(c, 20, 0)).values()) / len(task.client(c, 20, 0))
        for c in range(20)
    ]
    assert np.mean(shares) > 0.45  # equal shares would give a third


def test_one_colour_a_client_is_a_natural_partition() -> None:
    task = load_task(TaskConfig(partition="natural", key="colour"))
    assert [{e.meta["colour"] for e in task.client(c, 3, 0)} for c in range(3)] == [{"brown"}, {"gray"}, {"teal"}]


def test_a_key_that_is_not_there_is_refused() -> None:
    with pytest.raises(DataError, match=r"no field 'site'.*\['colour', 'image', 'shape', 'type'\]"):
        load_task(TaskConfig(partition="natural")).partition(3, 0)


def test_partitions_repeat_and_cannot_be_spoilt_by_a_caller(task: Task) -> None:
    first = task.partition(20, 5)
    first[0][:] = 0
    again = load_task(TaskConfig()).partition(20, 5)
    assert all(np.array_equal(a, b) for a, b in zip(task.partition(20, 5), again, strict=True))


@pytest.mark.parametrize("index", [-1, 20])
def test_a_client_that_does_not_exist_is_refused(task: Task, index: int) -> None:
    with pytest.raises(DataError, match="numbered 0 to 19"):
        task.client(index, 20, 0)


def test_images_are_opened_lazily_and_are_64_pixels(task: Task) -> None:
    assert task.train[0].images[0].open().size == (64, 64)
    assert len(task.fingerprint) == 64
    assert task.fingerprint == easy_vqa.fingerprint()


def test_other_data_is_refused() -> None:
    with pytest.raises(DataError, match="'builtin'"):
        load_task(TaskConfig(data="/somewhere"))


def test_a_missing_package_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataError, match="pip install easy-vqa"):
        easy_vqa._folder()
