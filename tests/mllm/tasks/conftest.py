import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _private_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UMBEL_HOME", str(tmp_path_factory.mktemp("home")))


def save_image(path: Path, seed: int = 0, size: tuple[int, int] = (32, 32), mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(values).convert(mode).save(path)
    return path


def write_lines(path: Path, rows: list[Any]) -> None:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def row(image: Any = "a.png", question: str = "what colour is the shape?", answer: str = "red", **more: Any) -> Any:
    return {"image": image, "question": question, "answer": answer, **more}


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Path]:
    def make(train: list[Any] | None = None, evaluation: list[Any] | None = None) -> Path:
        root = tmp_path / "data"
        root.mkdir(exist_ok=True)
        for seed, name in enumerate(("a.png", "b.png", "sub/c.png")):
            save_image(root / name, seed)
        write_lines(root / "train.jsonl", [row()] if train is None else train)
        write_lines(root / "eval.jsonl", [row()] if evaluation is None else evaluation)
        return root

    return make
