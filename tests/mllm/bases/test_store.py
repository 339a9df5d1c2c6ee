import json
import shutil
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from mllm.bases import build, locate, store
from mllm.bases.recipe import Recipe
from mllm.modeling import ComposedForConditionalGeneration
from mllm.processing import ComposedProcessor
from mllm.tasks import easy_vqa
from mllm.tasks.base import MemorySet
from mllm.tasks.collate import Collator
from mllm.tasks.metrics import evaluate
from umbel.cli.base import app
from umbel.errors import ModelError, RunError
from umbel.files import sha256_of

TINY = Recipe(encoder_steps=2, encoder_batch=8, joint_steps=2, joint_batch=4, channels=(8, 16, 64), width=64, layers=1)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    torch.set_num_threads(1)
    monkeypatch.setenv("UMBEL_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def no_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    figures = {"public": 0.0, "private": 0.0, "private_by_type": {}, "parameters": 0}
    monkeypatch.setattr("mllm.bases.demo.measure", lambda made: figures)


def test_the_shipped_copy_was_made_by_the_present_recipe() -> None:
    record = json.loads((store.COMMITTED / store.RECORD).read_text("utf-8"))
    assert record["hash"] == Recipe().hash(easy_vqa.fingerprint())
    assert locate("demo") == store.COMMITTED
    assert sum(file.stat().st_size for file in store.COMMITTED.iterdir()) <= 8 * 1024 * 1024
    assert {file.name for file in store.COMMITTED.iterdir()} == {*record["files"], store.RECORD}


def test_building_installs_the_shipped_copy(home: Path) -> None:
    told: list[str] = []
    path = build("demo", lambda stage, done, total: told.append(stage))
    assert set(told) == {"install"}
    assert path.parent == home / "bases"
    assert locate("demo") == path
    assert [p.name for p in path.parent.iterdir()] == [path.name], "something temporary was left"
    assert build("demo", lambda *_: pytest.fail("it was built again")) == path


def test_the_shipped_copy_does_what_its_record_says() -> None:
    record = json.loads((store.COMMITTED / store.RECORD).read_text("utf-8"))
    model = ComposedForConditionalGeneration.from_pretrained(store.COMMITTED).eval()
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    collator = Collator(ComposedProcessor.from_pretrained(store.COMMITTED))
    test = easy_vqa.read_split("test")
    figures = {}
    for name, wanted in (("public", False), ("private", True)):
        examples = MemorySet(e for e in test if easy_vqa.is_private(e) == wanted)
        found = evaluate(model, collator, examples, batch_size=100, limit=1000)
        figures[name] = found.accuracy
        if wanted:
            assert found.by_type["what colour"][0] == 0
    assert figures["public"] == pytest.approx(record["figures"]["public"], abs=0.03)
    assert figures["private"] == pytest.approx(record["figures"]["private"], abs=0.05)
    assert record["figures"]["public"] >= 0.96
    assert record["figures"]["private_by_type"]["what colour"] == 0


def test_a_damaged_shipped_copy_is_refused(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "demo"
    shutil.copytree(store.COMMITTED, copy)
    with (copy / "model.safetensors").open("r+b") as stream:
        stream.seek(-1, 2)
        stream.write(b"\x01")
    monkeypatch.setattr(store, "COMMITTED", copy)
    with pytest.raises(ModelError, match=r"model.safetensors is missing or differs"):
        build("demo")
    assert list((home / "bases").iterdir()) == []


@pytest.mark.usefixtures("no_measure")
def test_another_recipe_is_trained_into_a_checkpoint_of_its_own(home: Path) -> None:
    path = build("demo", recipe=TINY)
    record = json.loads((path / store.RECORD).read_text("utf-8"))
    assert record["recipe"]["width"] == 64
    assert all(sha256_of(path / name) == digest for name, digest in record["files"].items())
    model = ComposedForConditionalGeneration.from_pretrained(path)
    assert model.language_model.config.hidden_size == 64
    assert ComposedProcessor.from_pretrained(path).image_tokens == 16
    assert build("demo", recipe=TINY) == path
    first = sha256_of(path / "model.safetensors")
    (path / "model.safetensors").write_bytes(b"")
    assert build("demo", recipe=TINY, from_scratch=True) == path
    assert sha256_of(path / "model.safetensors") == first
    assert len(list((home / "bases").iterdir())) == 1


def test_an_interrupted_build_leaves_nothing(home: Path) -> None:
    def stop(stage: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build("demo", stop, recipe=TINY)
    assert list((home / "bases").iterdir()) == []


def test_without_a_copy_of_the_present_recipe_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for content in (None, "{", '{"hash": "other"}', "[]"):
        folder = tmp_path / str(content)[:1]
        folder.mkdir(exist_ok=True)
        if content is not None:
            (folder / store.RECORD).write_text(content)
        monkeypatch.setattr(store, "COMMITTED", folder)
        assert locate("demo") is None


def test_unknown_names() -> None:
    assert locate("some/hub-id") is None
    with pytest.raises(ModelError, match="no recipe here: choose one of demo"):
        build("nowhere")


def test_a_home_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("UMBEL_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(RunError, match="set UMBEL_HOME"):
        build("demo")


def test_the_command_prints_figures_and_place(home: Path) -> None:
    result = CliRunner().invoke(app, ["build", "demo"])
    assert result.exit_code == 0
    assert "on public test questions" in result.output
    assert str(locate("demo")) in result.output.replace("\n", "")
