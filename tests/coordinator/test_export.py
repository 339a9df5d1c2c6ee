import errno

import pytest

from coordinator.export import adapter_of, export_adapter
from coordinator.model_card import write_model_card
from tests.coordinator.sample_run import write_run
from umbel.errors import RunError


@pytest.fixture
def folder(tmp_path):
    path = write_run(tmp_path)
    write_model_card(path)
    (path / "adapter" / "adapter_config.json").write_text("{}")
    (path / "adapter" / "adapter_model.safetensors").write_bytes(b"weights")
    (path / "adapter" / ".partial").write_bytes(b"not for others")
    return path


def test_the_whole_adapter_is_copied(folder, tmp_path):
    target = tmp_path / "deep" / "er" / "adapter"
    assert export_adapter(folder, target) == target
    names = ["README.md", "adapter_config.json", "adapter_model.safetensors"]
    assert sorted(p.name for p in target.iterdir()) == names
    assert (target / "adapter_model.safetensors").read_bytes() == b"weights"
    assert target.stat().st_mode & 0o777 == 0o755


def test_an_empty_folder_is_filled_and_a_full_one_left_alone(folder, tmp_path):
    target = tmp_path / "there"
    target.mkdir()
    export_adapter(folder, target)
    (target / "README.md").write_text("mine")
    with pytest.raises(RunError, match="already exists and is not an empty folder"):
        export_adapter(folder, target)
    assert (target / "README.md").read_text() == "mine"
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(RunError, match="already exists"):
        export_adapter(folder, file)


@pytest.mark.parametrize("missing", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_run_without_an_adapter_is_refused(folder, tmp_path, missing):
    (folder / "adapter" / missing).unlink()
    with pytest.raises(RunError, match=rf"no adapter yet \({missing}.*run\.id=one"):
        adapter_of(folder)
    with pytest.raises(RunError):
        export_adapter(folder, tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_a_full_disk_leaves_nothing(folder, tmp_path, monkeypatch):
    def full(source, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("coordinator.export.shutil.copyfile", full)
    target = tmp_path / "out" / "adapter"
    with pytest.raises(RunError, match="No space left on device"):
        export_adapter(folder, target)
    assert list(target.parent.iterdir()) == []
