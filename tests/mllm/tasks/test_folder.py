import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mllm.tasks.base import Task
from mllm.tasks.example import ImageSource
from mllm.tasks.load import load_task
from tests.mllm.tasks.conftest import row, save_image, write_lines
from umbel.config import TaskConfig
from umbel.errors import DataError

MakeFolder = Callable[..., Path]


def _load(root: Path, **options: Any) -> Task:
    return load_task(TaskConfig(name="folder", data=str(root), minimum=options.pop("minimum", 1), **options))


def test_one_image_several_or_none(make_folder: MakeFolder) -> None:
    root = make_folder([row("a.png"), row(["a.png", "sub/c.png"]), row(None), {"question": "q", "answer": "a"}])
    task = _load(root)
    assert [len(e.images) for e in task.train] == [1, 2, 0, 0]
    assert task.train[1].images[1].open().size == (32, 32)
    assert (list(task.evaluation), task.headline, task.pretrain) == (["eval"], "eval", None)


def test_other_keys_are_kept_as_text(make_folder: MakeFolder) -> None:
    example = _load(make_folder([row(site="north", age=41, tags=["x"])])).train[0]
    assert example.meta == {"site": "north", "age": "41", "tags": '["x"]'}


def test_blank_lines_byte_order_marks_and_a_missing_last_newline_are_fine(make_folder: MakeFolder) -> None:
    root = make_folder()
    text = '\ufeff{"question": "q1", "answer": "Ü"}\n\n  \n{"question": "q2", "answer": "b"}'
    (root / "train.jsonl").write_text(text, encoding="utf-8")
    task = _load(root)
    assert [e.answer for e in task.train] == ["Ü", "b"]
    assert task.train[-1].question == "q2"
    assert task.skipped == []


BAD = [
    ("{not json", "line 2 is not JSON"),
    ("[1, 2]", "line 2 holds a list"),
    ("[" * 100_000, "line 2 is not JSON"),
    ('{"question": "q"}', "line 2 has no 'answer'"),
    ('{"question": "  ", "answer": "a"}', "line 2 has no 'question'"),
    ('{"question": 3, "answer": "a"}', "line 2 has no 'question'"),
    (row(5), "line 2 has an 'image' that is neither"),
    (row([""]), "line 2 has an 'image' that is neither"),
    (row("../outside.png"), "line 2 names the image '../outside.png' outside the data folder"),
    (row("/etc/passwd"), "line 2 names the image '/etc/passwd' outside the data folder"),
    (row("link.png"), "line 2 names the image 'link.png' outside the data folder"),
    (row("a\0b.png"), "line 2 names the image"),
    (row("missing.png"), r"missing.png \(train.jsonl, line 2\) does not exist"),
    (row("corrupt.png"), r"corrupt.png \(train.jsonl, line 2\) cannot be decoded"),
    (row("sub"), r"sub \(train.jsonl, line 2\) cannot be decoded"),
    (row("x" * 5000 + ".png"), "line 2"),
    (row(None, question="q" * 1_000_001), "line 2 is longer than 1000000 bytes"),
]


@pytest.mark.parametrize(("line", "message"), BAD, ids=[message[:40] for _, message in BAD])
def test_a_bad_line_is_refused_or_skipped_with_its_number(make_folder: MakeFolder, line: Any, message: str) -> None:
    root = make_folder([row(answer="first"), line, row(answer="third")])
    save_image(root.parent / "outside.png")
    os.symlink(root.parent / "outside.png", root / "link.png")
    (root / "corrupt.png").write_bytes((root / "a.png").read_bytes()[:200])
    with pytest.raises(DataError, match=message) as refused:
        _load(root)
    assert "bad-lines" in str(refused.value)
    task = _load(root, **{"bad-lines": "skip"})
    assert [e.answer for e in task.train] == ["first", "third"]
    assert task.train[1].answer == "third"
    assert len(task.skipped) == 1


def test_bytes_that_are_not_utf8_are_a_bad_line(make_folder: MakeFolder) -> None:
    root = make_folder()
    (root / "train.jsonl").write_bytes(b'{"question": "\xff", "answer": "a"}\n')
    with pytest.raises(DataError, match="line 1 is not JSON in UTF-8"):
        _load(root)


@pytest.mark.parametrize("split", ["train.jsonl", "eval.jsonl"])
def test_a_missing_or_empty_split_is_refused(make_folder: MakeFolder, split: str) -> None:
    root = make_folder()
    (root / split).write_text("\n\n")
    with pytest.raises(DataError, match=f"{split} has no usable line"):
        _load(root)
    (root / split).unlink()
    with pytest.raises(DataError, match=f"{split} does not exist"):
        _load(root)


def test_a_split_whose_every_line_is_skipped_is_refused(make_folder: MakeFolder) -> None:
    with pytest.raises(DataError, match=r"no usable line \(2 were skipped"):
        _load(make_folder(["x", "y"]), **{"bad-lines": "skip"})


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a folder"):
        _load(tmp_path / "nowhere")


def test_good_images_are_decoded_once_until_they_change(
    make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_folder([row("a.png"), row("b.png"), row("a.png")])
    opened: list[str] = []
    original = ImageSource.open
    monkeypatch.setattr(ImageSource, "open", lambda self: (opened.append(self.path.name), original(self))[1])
    _load(root)
    assert sorted(opened) == ["a.png", "b.png"]
    opened.clear()
    _load(root)
    assert opened == []
    save_image(root / "b.png", seed=9, size=(16, 16))
    _load(root)
    assert opened == ["b.png"]


def test_a_damaged_memory_of_checked_images_is_ignored(make_folder: MakeFolder) -> None:
    root = make_folder()
    _load(root)
    [memory] = (Path(os.environ["UMBEL_HOME"]) / "checked").iterdir()
    for damage in (b"{", b"[]", b'{"a.png": "x"}'):
        memory.write_bytes(damage)
        assert len(_load(root).train) == 1


def test_the_fingerprint_follows_the_content(make_folder: MakeFolder) -> None:
    root = make_folder()
    before = _load(root).fingerprint
    assert _load(root).fingerprint == before
    write_lines(root / "eval.jsonl", [row(answer="blue")])
    after = _load(root).fingerprint
    assert after != before
    save_image(root / "a.png", seed=9, size=(16, 16))
    assert _load(root).fingerprint != after


def test_a_file_that_vanishes_later_is_one_sentence(make_folder: MakeFolder) -> None:
    root = make_folder()
    task = _load(root)
    (root / "train.jsonl").unlink()
    with pytest.raises(DataError, match="cannot be read any more"):
        _ = task.train[0]
    with pytest.raises(DataError, match="cannot be read any more"):
        list(task.train)


def test_natural_partition_by_site(make_folder: MakeFolder) -> None:
    rows = [row(None, answer=str(i), site="north" if i % 3 else "south") for i in range(9)]
    task = _load(make_folder(rows), partition="natural")
    assert [e.answer for e in task.client(1, 2, 0)] == ["0", "3", "6"]
    with pytest.raises(DataError, match="names 2 owners but 4 clients"):
        task.partition(4, 0)


@pytest.mark.parametrize("kind", ["iid", "dirichlet", "question-type"])
def test_repeated_images_stay_together(make_folder: MakeFolder, kind: str) -> None:
    rows = [row(["a.png", "b.png"]), row("b.png"), *[row(None, answer=str(i)) for i in range(8)], row("a.png")]
    parts = _load(make_folder(rows), partition=kind, minimum=2).partition(3, 1)
    assert sorted(np.concatenate(parts).tolist()) == list(range(11))
    assert sum(bool({0, 1, 10} & set(part.tolist())) for part in parts) == 1


def test_slices_subsets_and_wrong_indices(make_folder: MakeFolder) -> None:
    task = _load(make_folder([row(None, answer=str(i)) for i in range(5)]))
    assert [e.answer for e in task.train[1:4]] == ["1", "2", "3"]
    assert [e.answer for e in task.train.subset([4, 0]).subset([1])] == ["0"]
    with pytest.raises(DataError, match="outside 0 to 4"):
        task.train.subset([5])
    with pytest.raises(IndexError):
        _ = task.train[5]
