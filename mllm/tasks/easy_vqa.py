"""The published easy-VQA set (PyPI ``easy-vqa``): 5,000 images of one coloured shape, 48,248 questions, 13 answers.

Images whose shape is blue, red, yellow, black or green are public: the demo base was trained on them. Images whose
shape is gray, brown or teal are private: they lie with the clients (1,505 training and 386 test images). The split
goes by the pixels, not only by the colours that the questions happen to give away.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from mllm.tasks.base import MemorySet, Task, fingerprint_of
from mllm.tasks.example import Example, ImageSource
from umbel.config import TaskConfig
from umbel.errors import DataError

PALETTE = {
    "blue": (0, 0, 255),
    "red": (255, 0, 0),
    "yellow": (255, 255, 0),
    "black": (0, 0, 0),
    "green": (0, 255, 0),
    "gray": (128, 128, 128),
    "brown": (165, 42, 42),
    "teal": (0, 128, 128),
}
"""RGB of the eight shape colours."""

PRIVATE_COLOURS = frozenset({"gray", "brown", "teal"})
PUBLIC_COLOURS = frozenset(PALETTE) - PRIVATE_COLOURS
SHAPES = ("circle", "rectangle", "triangle")
ANSWERS = (*PALETTE, *SHAPES, "no", "yes")

_DARKEST_BACKGROUND = 225
"""Every channel of a background is lighter; every shape has a darker one."""

_FAMILIES = (
    (r"color", "what colour"),
    (r"^what", "what shape"),
    (r"^does the image not contain", "does the image not contain"),
    (r"^does the image contain", "does the image contain"),
    (r"^is there not a", "is there not a"),
    (r"^is there a", "is there a"),
    (r"^is no .* present", "is no ... present"),
    (r"^is a .* present", "is a ... present"),
)


@lru_cache(maxsize=4096)
def family(question: str) -> str:
    """Which of the eight families a question belongs to; its first two words if none."""
    for pattern, name in _FAMILIES:
        if re.search(pattern, question):
            return name
    return " ".join(question.split()[:2])


class EasyVqaTask(Task):
    """easy-VQA with its private colours at the clients; see the module."""

    def label(self, examples: Sequence[Example]) -> str:
        """Colour and shape of the image."""
        return f"{examples[0].meta['colour']} {examples[0].meta['shape']}"


def load(config: TaskConfig) -> EasyVqaTask:
    """Reads the set that is installed with the package ``easy-vqa``.

    Each example's ``meta`` has ``image`` ("train/12"), ``colour``, ``shape`` and ``type``; ``colour`` and
    ``shape`` serve as keys of the natural partition.

    Raises:
        DataError: the package is missing or its files are damaged, or ``config.data`` is not ``builtin``.
    """
    if config.data != "builtin":
        raise DataError(
            f"Task easy-vqa comes with its own data, but task.data is {config.data!r}: set it to 'builtin' or set "
            "task.name to 'folder'."
        )
    train, test = read_split("train"), read_split("test")
    return EasyVqaTask(
        name="easy-vqa",
        config=config,
        train=MemorySet(e for e in train if is_private(e)),
        evaluation={
            "private": MemorySet(e for e in test if is_private(e)),
            "public": MemorySet(e for e in test if not is_private(e)),
        },
        headline="private",
        pretrain=MemorySet(e for e in train if not is_private(e)),
        fingerprint=fingerprint(),
    )


def is_private(example: Example) -> bool:
    """Whether the image's shape has a private colour."""
    return example.meta["colour"] in PRIVATE_COLOURS


@lru_cache(maxsize=2)
def read_split(split: str) -> tuple[Example, ...]:
    """All examples of ``train`` or ``test``, in the published order.

    Raises:
        DataError: the package is missing or its files are damaged.
    """
    folder = _folder() / split
    try:
        rows = [(str(q), str(a), int(i)) for q, a, i in json.loads((folder / "questions.json").read_text("utf-8"))]
    except (OSError, ValueError, TypeError) as error:
        raise DataError(
            f"The questions of easy-vqa cannot be read ({error}): reinstall the package easy-vqa==1.0."
        ) from None
    asked: dict[int, list[tuple[str, str]]] = defaultdict(list)
    for question, answer, image in rows:
        asked[image].append((question, answer))
    sources = {
        i: ImageSource(folder / "images" / f"{i}.png", origin=f"easy-vqa {split} image {i}", keep=True) for i in asked
    }
    facts = {i: _facts(sources[i], asked[i]) for i in asked}
    return tuple(
        Example(
            images=(sources[i],),
            question=question,
            answer=answer,
            meta={
                "image": f"{split}/{i}",
                "colour": facts[i][0],
                "shape": facts[i][1],
                "type": family(question),
            },
        )
        for question, answer, i in rows
    )


def _facts(source: ImageSource, asked: Sequence[tuple[str, str]]) -> tuple[str, str]:
    """Colour and shape of the one shape in an image, from its questions; the colour from its pixels if need be."""
    colours, shapes = set(PALETTE), set(SHAPES)
    for question, answer in asked:
        if answer in PALETTE:
            colours = {answer}
        elif answer in SHAPES:
            shapes = {answer}
        else:
            negated = " not " in question or " no " in question
            present = (answer == "yes") != negated
            for known in (colours, shapes):
                if named := known & set(question.rstrip("?").split()):
                    known.intersection_update(named) if present else known.difference_update(named)
    colour = colours.pop() if len(colours) == 1 else colour_of(source)
    return colour, shapes.pop() if len(shapes) == 1 else "shape"


def colour_of(source: ImageSource) -> str:
    """The palette colour nearest to the most frequent colour among the pixels that are not background.

    Raises:
        DataError: the image cannot be read or shows background only.
    """
    pixels = np.asarray(source.open(), dtype=np.int64).reshape(-1, 3)
    shape = pixels[pixels.min(axis=1) < _DARKEST_BACKGROUND]
    if not len(shape):
        raise DataError(f"{source.origin} shows no shape: reinstall the package easy-vqa==1.0.")
    # The most frequent one, not a mean or median: of the smallest shapes half the pixels are blurred edge.
    packed, counts = np.unique(shape @ np.array([65536, 256, 1]), return_counts=True)
    flat = np.array([int(packed[counts.argmax()]) >> shift & 255 for shift in (16, 8, 0)])
    return min(PALETTE, key=lambda name: float(np.square(flat - np.array(PALETTE[name])).sum()))


def fingerprint() -> str:
    """SHA-256 over the questions and every image file, in the order of their names."""
    folder = _folder()
    return _fingerprint(folder)


@lru_cache(maxsize=1)
def _fingerprint(folder: Path) -> str:
    files = [p for split in ("train", "test") for p in sorted((folder / split).rglob("*")) if p.suffix in _READ]
    return fingerprint_of(
        part for path in files for part in (path.relative_to(folder).as_posix().encode(), path.read_bytes())
    )


_READ = frozenset({".json", ".png"})


def _folder() -> Path:
    spec = importlib.util.find_spec("easy_vqa")
    if spec is None or spec.origin is None:
        raise DataError("The easy-VQA data is not installed: run `pip install easy-vqa==1.0`.")
    folder = Path(spec.origin).parent / "data"
    if not (folder / "train" / "questions.json").is_file():
        raise DataError(f"{folder} does not hold the easy-VQA data: reinstall the package easy-vqa==1.0.")
    return folder
