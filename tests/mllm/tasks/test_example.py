from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mllm.tasks.example import Example, ImageSource, question_type
from umbel.errors import DataError


def _save(path: Path, image: Image.Image) -> Path:
    image.save(path)
    return path


def test_an_image_opens_as_rgb(tmp_path: Path) -> None:
    path = _save(tmp_path / "a.png", Image.new("RGB", (5, 7), (1, 2, 3)))
    image = ImageSource(path).open()
    assert (image.mode, image.size, image.getpixel((0, 0))) == ("RGB", (5, 7), (1, 2, 3))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "LA", "CMYK", "I;16", "I", "F"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    path = _save(tmp_path / "a.tiff", Image.new("L", (4, 4), 200).convert(mode))
    assert ImageSource(path).open().mode == "RGB"


def test_sixteen_bits_keep_their_contrast(tmp_path: Path) -> None:
    values = np.linspace(1000, 60000, 64, dtype=np.uint16).reshape(8, 8)
    path = _save(tmp_path / "xray.png", Image.fromarray(values))
    found = np.asarray(ImageSource(path).open())[..., 0]
    assert found.min() == 0
    assert found.max() >= 254
    assert len(np.unique(found)) > 50


def test_transparent_pixels_are_white(tmp_path: Path) -> None:
    path = _save(tmp_path / "a.png", Image.new("RGBA", (2, 2), (255, 0, 0, 0)))
    assert ImageSource(path).open().getpixel((0, 0)) == (255, 255, 255)


def test_an_image_bomb_is_refused_before_it_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _save(tmp_path / "bomb.png", Image.new("1", (3000, 3000)))

    def explode(*_: object) -> None:
        raise AssertionError("a pixel was decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", explode)
    with pytest.raises(DataError, match=r"train.jsonl, line 7.* declares 3000 x 3000 pixels, expected at most 1000000"):
        ImageSource(path, origin="train.jsonl, line 7", max_pixels=1_000_000).open()


def test_a_missing_image_is_named_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere.png \(train.jsonl, line 3\) does not exist"):
        ImageSource(tmp_path / "nowhere.png", origin="train.jsonl, line 3").open()


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_image_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a.png .*cannot be decoded"):
        ImageSource(path, origin="train.jsonl, line 1").open()


def test_a_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be decoded"):
        ImageSource(tmp_path).open()


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_truncated_image_is_refused(tmp_path: Path, suffix: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = _save(tmp_path / f"a.{suffix}", Image.fromarray(noise))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match="cannot be decoded"):
        ImageSource(path).open()


def test_a_kept_image_is_decoded_once_and_another_is_not_kept(tmp_path: Path) -> None:
    path = _save(tmp_path / "a.png", Image.new("RGB", (4, 4), (9, 9, 9)))
    kept, fresh = ImageSource(path, keep=True), ImageSource(path)
    assert kept.open() is kept.open()
    path.unlink()
    assert kept.open().getpixel((0, 0)) == (9, 9, 9)
    with pytest.raises(DataError, match="does not exist"):
        fresh.open()


def test_the_question_type_is_the_named_one_or_the_first_words() -> None:
    assert question_type(Example((), "What is this?", "x", {"type": "organ"})) == "organ"
    assert question_type(Example((), "What is this?", "x")) == "what is"
    assert question_type(Example((), "", "x")) == "(empty)"
