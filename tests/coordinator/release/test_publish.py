import json
import pickle

import pytest

from coordinator.release.manifest import parse_manifest, read_manifest
from coordinator.release.publish import release_key, rollback
from umbel.errors import DeployError, RunError
from umbel.signed import verify


def test_the_manifest_says_what_was_released(world):
    release = world.registry.find("easy")
    manifest = read_manifest(release.manifest, release.signature, world.signers)
    assert manifest == world.manifest
    assert (manifest.name, manifest.version, manifest.run) == ("easy", 1, "one")
    assert (manifest.base.name, manifest.base.hash) == ("demo", "ab" * 32)
    assert (manifest.adapter, manifest.values) == ("cd" * 32, 65536)
    assert manifest.privacy.epsilon is None
    assert "no guarantee" in manifest.privacy.statement
    assert "Secure aggregation was off" in manifest.privacy.aggregation
    assert [file.name for file in manifest.files] == ["README.md", "adapter_config.json", "adapter_model.safetensors"]
    for file in manifest.files:
        stored = world.blobs.path(file.sha256).read_bytes()
        assert stored == (world.run / "adapter" / file.name).read_bytes()
        assert len(stored) == file.size


def test_the_signature_is_for_this_purpose_and_these_bytes_only(world):
    release = world.registry.find("easy")
    with pytest.raises(DeployError, match="signature of the manifest is none"):
        verify(release.manifest, release.signature, world.signers, "roster", what="manifest")
    for changed in (release.manifest[:-1], release.manifest.replace(b'"version":1', b'"version":2')):
        with pytest.raises(DeployError, match="does not fit its signature"):
            read_manifest(changed, release.signature, world.signers)
    with pytest.raises(DeployError, match="whom nobody here trusts"):
        read_manifest(release.manifest, release.signature, {b"\1" * 32})


def test_versions_and_going_back(world):
    assert world.publish().version == 2
    assert world.registry.find("easy").version == 2
    assert rollback("easy", world.key, world.registry) == 1
    assert world.registry.find("easy").version == 1
    with pytest.raises(DeployError, match="easy 1 has no earlier version"):
        rollback("easy", world.key, world.registry)
    assert rollback("easy", world.key, world.registry, 2) == 2
    with pytest.raises(DeployError, match="Nothing was released under 'other'"):
        rollback("other", world.key, world.registry)


@pytest.mark.parametrize("name", ["weights.bin", "model.pkl", "model.pt", "run.py", "x.safetensors.zip"])
def test_nothing_but_safetensors_and_text_is_released(world, name):
    (world.run / "adapter" / name).write_bytes(pickle.dumps([1]))
    with pytest.raises(DeployError, match="has no place in a release"):
        world.publish()
    assert len(world.registry.releases()) == 1


def test_a_pickle_under_another_name_is_seen(world):
    (world.run / "adapter" / "adapter_model.safetensors").write_bytes(pickle.dumps([1] * 50))
    with pytest.raises(DeployError, match=r"adapter_model\.safetensors is not what its name says"):
        world.publish()
    (world.run / "adapter" / "adapter_config.json").write_bytes(pickle.dumps([1]))
    with pytest.raises(DeployError, match=r"adapter_config\.json is not what its name says"):
        world.publish()


def test_links_and_folders_are_refused(world):
    link = world.run / "adapter" / "notes.md"
    link.symlink_to("/etc/passwd")
    with pytest.raises(DeployError, match=r"notes\.md is no plain file"):
        world.publish()
    link.unlink()
    link.mkdir()
    with pytest.raises(DeployError, match="is no plain file"):
        world.publish()


def test_an_unfinished_run_is_not_released(world):
    lines = (world.run / "metrics.jsonl").read_text().splitlines()
    (world.run / "metrics.jsonl").write_text(
        "".join(line + "\n" for line in lines if json.loads(line)["kind"] != "end")
    )
    with pytest.raises(DeployError, match="has not finished"):
        world.publish()


def test_a_run_without_an_adapter_is_not_released(world):
    (world.run / "adapter" / "adapter_config.json").unlink()
    with pytest.raises(RunError, match="has no adapter yet"):
        world.publish()


@pytest.mark.parametrize("name", ["", "../easy", "Easy", "a/b", "a" * 64, "easy\n", ".easy"])
def test_names_that_could_lead_elsewhere(world, name):
    with pytest.raises(DeployError, match="cannot name a release"):
        world.publish(name)


def test_only_an_enrolled_coordinator_signs(world):
    with pytest.raises(DeployError, match="not on the federation's list of signers"):
        release_key(world.site)
    (world.hub / "identity" / "identity.key").chmod(0o644)
    with pytest.raises(DeployError, match=r"open to others \(mode 0644\): run chmod 600"):
        release_key(world.hub)


def test_a_manifest_in_another_form_is_refused(world):
    release = world.registry.find("easy")
    with pytest.raises(DeployError, match="not in canonical form"):
        parse_manifest(json.dumps(json.loads(release.manifest)).encode())
