import errno
import os
from pathlib import Path

import pytest

from coordinator import run_folder
from coordinator.run_folder import (
    RunFolder,
    discard_unused,
    find_run,
    first_difference,
    list_runs,
    read_config,
    read_error,
    runs_root,
)  # fmt: skip
from coordinator.tracking import Tracker
from tests.coordinator.sample_run import config, start_line, write_run
from umbel.config import RunConfig
from umbel.errors import ConfigError, DataError, RunError


def checkpointed(root: Path) -> Path:
    with RunFolder.open(config(root), 7) as folder:
        folder.checkpoint.mkdir()
        (folder.checkpoint / "state.safetensors").write_bytes(b"x")
        Tracker(folder.metrics).start(**start_line())
        return folder.path


def test_a_new_run_has_its_config_and_nothing_else(tmp_path):
    with RunFolder.open(config(tmp_path, **{"train.batch-size": 5}), 7) as folder:
        assert not folder.resumed
        assert not folder.finished
        assert folder.id == "one"
        assert sorted(p.name for p in folder.path.iterdir()) == [".lock", "config.toml"]
        assert read_config(folder.path) == config(tmp_path, **{"train.batch-size": 5})


def test_auto_takes_flowers_run_id(tmp_path):
    with RunFolder.open(config(tmp_path, **{"run.id": "auto"}), 1234567890123456789) as folder:
        assert folder.path.name == "1234567890123456789"


def test_a_relative_directory_counts_from_umbel_root_or_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.delenv("UMBEL_ROOT", raising=False)
    monkeypatch.chdir(tmp_path)
    assert runs_root("there") == tmp_path / "there"
    monkeypatch.setenv("UMBEL_ROOT", str(tmp_path / "root"))
    assert runs_root("there") == tmp_path / "root" / "there"
    assert runs_root("/abs") == Path("/abs")


def test_the_same_options_resume(tmp_path):
    checkpointed(tmp_path)
    with RunFolder.open(config(tmp_path, **{"federation.timeout": 5.0, "evaluate.limit": 3}), 8) as folder:
        assert folder.resumed
        assert folder.metrics.is_file()
    assert read_config(folder.path).federation.timeout == 600.0  # as it was started


@pytest.mark.parametrize(
    ("key", "value"),
    [("train.learning-rate", 0.5), ("run.seed", 3), ("lora.rank", 4), ("privacy.epsilon", 2.0),
     ("federation.rounds", 9), ("train.microbatch", 4), ("federation.minimum", 1)],
)  # fmt: skip
def test_options_that_change_the_result_are_refused_on_resume(tmp_path, key, value):
    folder = checkpointed(tmp_path)
    before = (folder / "config.toml").read_bytes()
    with pytest.raises(ConfigError, match=rf"started with {key} = .* not {value!r}: resume"):
        RunFolder.open(config(tmp_path, **{key: value}), 8)
    assert (folder / "config.toml").read_bytes() == before
    RunFolder.open(config(tmp_path), 8).close()  # the lock was given up


def test_first_difference_names_the_first_in_order_and_ignores_free_options():
    old = RunConfig()
    new = RunConfig.from_flat({"train.batch-size": 3, "model.name": "x", "run.id": "other"})
    assert first_difference(old, new) == "model.name"
    assert first_difference(old, RunConfig.from_flat({"run.directory": "z", "evaluate.every": 0})) is None


def test_a_folder_without_a_finished_round_starts_anew(tmp_path):
    with RunFolder.open(config(tmp_path), 7) as folder:
        Tracker(folder.metrics).start(**start_line())
    with RunFolder.open(config(tmp_path, **{"lora.rank": 4}), 7) as folder:
        assert not folder.resumed
        assert not folder.metrics.exists()
        assert read_config(folder.path).lora.rank == 4


def test_a_finished_run_is_never_overwritten_even_without_its_checkpoint(tmp_path):
    path = write_run(tmp_path)
    lines = (path / "metrics.jsonl").read_bytes()
    with RunFolder.open(config(tmp_path), 7) as folder:
        assert folder.finished
        assert folder.resumed
    assert (path / "metrics.jsonl").read_bytes() == lines
    with pytest.raises(ConfigError, match=r"lora\.rank"):
        RunFolder.open(config(tmp_path, **{"lora.rank": 4}), 7)


def test_two_processes_never_run_the_same_id(tmp_path):
    with (
        RunFolder.open(config(tmp_path), 7),
        pytest.raises(RunError, match="is running in another process: wait"),
    ):
        RunFolder.open(config(tmp_path), 7)
    RunFolder.open(config(tmp_path), 7).close()


def test_an_unwritable_folder_is_one_sentence_and_leaves_nothing(tmp_path):
    (tmp_path / "runs").write_text("a file stands where the folder should be")
    with pytest.raises(RunError, match=r"cannot be written .*: choose a run\.directory"):
        RunFolder.open(config(tmp_path), 7)
    assert (tmp_path / "runs").read_text().startswith("a file")


def test_a_full_disk_leaves_nothing_half_written(tmp_path, monkeypatch):
    def full(descriptor, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(run_folder.os, "write", full)
    with pytest.raises(RunError, match="No space left on device"):
        RunFolder.open(config(tmp_path), 7)
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_full_disk_while_the_config_is_written_leaves_nothing(tmp_path, monkeypatch):
    def full(source, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("umbel.files.os.replace", full)
    with pytest.raises(RunError, match="No space left on device"):
        RunFolder.open(config(tmp_path), 7)
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    photos = tmp_path / "runs" / "one"
    photos.mkdir(parents=True)
    (photos / "cat.png").write_bytes(b"cat")
    with pytest.raises(RunError, match="is not the folder of a run"):
        RunFolder.open(config(tmp_path), 7)
    (photos / "config.toml").write_text("theirs = true")
    with pytest.raises(ConfigError):
        RunFolder.open(config(tmp_path), 7)
    assert sorted(p.name for p in photos.iterdir() if p.name != ".lock") == ["cat.png", "config.toml"]
    assert (photos / "config.toml").read_text() == "theirs = true"
    assert not discard_unused(photos)


def test_a_damaged_config_is_named(tmp_path):
    path = checkpointed(tmp_path)
    (path / "config.toml").write_text("not [ toml")
    with pytest.raises(RunError, match=r"config\.toml cannot be read"):
        RunFolder.open(config(tmp_path), 7)


def test_a_failure_is_left_and_goes_with_the_next_start(tmp_path):
    with RunFolder.open(config(tmp_path), 7) as folder:
        folder.fail(DataError("The data is gone: bring it back."))
        assert read_error(folder.path) == ("The data is gone: bring it back.", 20)
    with RunFolder.open(config(tmp_path), 7) as folder:
        assert read_error(folder.path) is None
    (folder.path / "error.json").write_text("{torn")
    assert read_error(folder.path) is None


def test_runs_are_found_by_id_and_path(tmp_path, monkeypatch):
    monkeypatch.setenv("UMBEL_ROOT", str(tmp_path))
    assert list_runs() == []
    first = write_run(tmp_path)
    second = write_run(tmp_path, **{"run.id": "two"})
    os.utime(first / "config.toml", (1, 1))
    assert list_runs() == [first, second]
    assert find_run("two") == second
    assert find_run(str(first)) == first
    for wrong in ("three", "", "../runs"):
        with pytest.raises(RunError, match="list the runs with"):
            find_run(wrong)


def test_discard_removes_only_a_run_in_which_nothing_happened(tmp_path):
    with RunFolder.open(config(tmp_path), 7) as folder:
        folder.fail(DataError("x"))
    assert discard_unused(folder.path)
    assert not folder.path.exists()
    used = write_run(tmp_path)
    assert not discard_unused(used)
    assert (used / "config.toml").is_file()
    assert not discard_unused(tmp_path / "absent")
