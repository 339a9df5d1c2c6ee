import json

import numpy as np
import pytest
from PIL import Image

import mllm.video
from mllm.inference.views import views
from mllm.tasks.load import load_task
from mllm.video import FrameSource
from umbel.config import TaskConfig
from umbel.errors import DataError


def grey(value, size=16):
    return Image.fromarray(np.full((size, size, 3), value, dtype=np.uint8))


def shades(example):
    return [int(np.asarray(source.open())[0, 0, 0]) for source in example.images]


def animated(path, count=9, **options):
    frames = [grey(20 * n) for n in range(count)]
    frames[0].save(path, save_all=True, append_images=frames[1:], **options)


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("UMBEL_HOME", str(tmp_path / "home"))
    folder = tmp_path / "data"
    (folder / "frames").mkdir(parents=True)
    for n in range(9):
        grey(20 * n).save(folder / "frames" / f"{n:02}.png")
    (folder / "frames" / "Thumbs.db").write_bytes(b"no image")
    animated(folder / "clip.gif")
    animated(folder / "clip.webp", lossless=True)
    animated(folder / "clip.png")
    animated(folder / "clip.tiff")
    write(folder, {"image": "frames/00.png"}, split="eval")
    return folder


def write(root, *bodies, split="train"):
    lines = [json.dumps({"question": "what moves ?", "answer": "it", **body}) for body in bodies]
    (root / f"{split}.jsonl").write_text("\n".join(lines) + "\n")


def task(root, **options):
    return load_task(TaskConfig(name="folder", data=str(root), minimum=1, partition="iid", **options))


@pytest.mark.parametrize(
    "video",
    ["clip.gif", "clip.webp", "clip.png", "clip.tiff", "frames", [f"frames/{n:02}.png" for n in range(9)]],
    ids=str,
)
def test_frames_are_taken_at_even_distances(video, root):
    write(root, {"video": video, "camera": "north"})
    for frames, expected in ((3, [0, 80, 160]), (1, [80]), (2, [0, 160]), (200, [20 * n for n in range(9)])):
        found = task(root, frames=frames)
        assert shades(found.train[0]) == expected
        assert found.train[0].meta == {"camera": "north"}


def test_frames_are_read_lazily_and_a_file_once_for_all_its_frames(root, monkeypatch):
    write(root, {"video": "clip.gif"})
    found = task(root, frames=3)
    decoded = []
    plain = FrameSource._decode
    monkeypatch.setattr(FrameSource, "_decode", lambda self: decoded.append(self.path.name) or plain(self))
    monkeypatch.setattr(mllm.video, "_held", mllm.video._Held())
    example = found.train[0]
    assert decoded == []
    assert shades(example) == [0, 80, 160]
    assert decoded == ["clip.gif"]
    assert len(set(example.images)) == 3
    seen = views(example, 2, 0)[1]  # a view of a frame is a view of that frame
    assert [abs(a - b) <= 20 for a, b in zip(shades(seen), [0, 80, 160], strict=True)] == [True] * 3


def test_questions_about_one_video_lie_at_one_client(root):
    write(root, *[{"video": name} for name in ("clip.gif", "clip.webp", "clip.gif", "clip.webp")])
    parts = task(root).partition(2, seed=0)
    assert sorted(tuple(part) for part in parts) == [(0, 2), (1, 3)]


def test_the_fingerprint_tells_numbers_of_frames_apart(root):
    write(root, {"video": "clip.gif"})
    assert task(root, frames=2).fingerprint == task(root, frames=2).fingerprint
    assert task(root, frames=2).fingerprint != task(root, frames=3).fingerprint


def test_a_truncated_video_is_found_when_the_folder_is_read(root):
    data = (root / "clip.webp").read_bytes()
    (root / "clip.webp").write_bytes(data[: len(data) - 40])
    write(root, {"video": "clip.gif"}, {"video": "clip.webp"})
    with pytest.raises(DataError, match=r"clip\.webp \(train\.jsonl, line 2\) cannot be decoded"):
        task(root)
    found = task(root, **{"bad-lines": "skip"})
    assert len(found.train) == 1
    assert len(found.skipped) == 1


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({"video": "clip.gif", "image": "frames/00.png"}, "line 1 has both 'image' and 'video'"),
        ({"video": 7}, "line 1 has a 'video' that is neither"),
        ({"video": []}, "line 1 has a 'video' of 0 frames"),
        ({"video": "missing.gif"}, r"missing.gif \(train.jsonl, line 1\) does not exist"),
        ({"video": ["frames/00.png", "frames/77.png"]}, r"77.png \(train.jsonl, line 1\) does not exist"),
        ({"video": "../clip.gif"}, "outside the data folder"),
        ({"video": "empty"}, r"\(train.jsonl, line 1\) holds no frame"),
        ({"video": "linked"}, "outside the data folder"),
        ({"video": "movie.mp4"}, r"movie.mp4 \(train.jsonl, line 1\) cannot be decoded.*folder of its frames"),
    ],
)
def test_refusals_name_the_line(body, sentence, root):
    (root / "empty").mkdir()
    (root / "linked").mkdir()
    grey(3).save(root.parent / "secret.png")
    (root / "linked" / "0.png").symlink_to(root.parent / "secret.png")
    (root / "movie.mp4").write_bytes(b"\x00\x00\x00\x18ftypmp42")
    write(root, body)
    with pytest.raises(DataError, match=sentence):
        task(root)


@pytest.mark.parametrize(
    ("limit", "value", "sentence"),
    [
        ("MAX_FRAMES", 8, "has 9 frames, expected at most 8"),
        ("MAX_BYTES", 10, "bytes, expected at most 10"),
        ("MAX_DECODED", 9 * 256 - 1, "has 2304 pixels in all its frames"),
        ("MAX_PIXELS", 3 * 256 - 1, "has 768 pixels in the 3 frames that are taken"),
    ],
)
def test_limits(limit, value, sentence, root, monkeypatch):
    write(root, {"video": "clip.gif"})
    monkeypatch.setattr(mllm.video, limit, value)
    with pytest.raises(DataError, match=sentence):
        task(root, frames=3)


def test_a_folder_of_too_many_frames_is_refused(root, monkeypatch):
    write(root, {"video": "frames"})
    monkeypatch.setattr(mllm.video, "MAX_FRAMES", 8)
    with pytest.raises(DataError, match=r"line 1\) holds more than 8 frames"):
        task(root)
