import numpy as np
import pytest
import torch
from PIL import Image

from mllm.testing import tiny_composed
from mllm.video import sample_frames
from umbel.errors import DataError


def grey(value):
    return Image.fromarray(np.full((32, 32, 3), value, dtype=np.uint8))


def shades(frames):
    return [int(np.asarray(frame)[0, 0, 0]) for frame in frames]


@pytest.fixture
def clip(tmp_path):
    frames = [grey(20 * n) for n in range(9)]
    frames[0].save(tmp_path / "clip.webp", save_all=True, append_images=frames[1:], lossless=True)
    return tmp_path / "clip.webp"


def test_frames_are_spread_evenly_and_in_order(clip, tmp_path):
    assert shades(sample_frames(clip, 3)) == [0, 80, 160]
    assert shades(sample_frames(clip, 1)) == [80]
    assert len(sample_frames(clip, 50)) == 9
    folder = tmp_path / "frames"
    folder.mkdir()
    for number in range(5):
        grey(50 * number).save(folder / f"{number:02}.png")
    assert shades(sample_frames(folder, 2)) == [0, 200]
    assert shades(sample_frames(folder / "03.png", 4)) == [150]


def test_a_model_reads_frames_as_several_images(clip):
    tiny = tiny_composed()
    frames = sample_frames(clip, 4)
    inputs = tiny.processor(["<image> <image> <image> <image> what is there ?", "yes"], [frames, []])
    assert inputs["pixel_values"].shape[0] == 4
    with torch.no_grad():
        forward = tiny.model(**inputs).logits
        inputs["pixel_values"] = inputs["pixel_values"].flip(0)
        backward = tiny.model(**inputs).logits
    assert (forward[0] - backward[0]).abs().max() > 1e-5
    assert torch.equal(forward[1], backward[1])


def test_refusals(tmp_path):
    with pytest.raises(DataError, match="expected at least 1"):
        sample_frames(tmp_path, 0)
    with pytest.raises(DataError, match="does not exist"):
        sample_frames(tmp_path / "missing.mp4", 2)
    (tmp_path / "movie.mp4").write_bytes(b"\x00\x00\x00\x18ftypmp42")
    with pytest.raises(DataError, match="folder of its frames"):
        sample_frames(tmp_path / "movie.mp4", 2)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match="holds no frame"):
        sample_frames(empty, 2)
