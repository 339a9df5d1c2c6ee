"""Offline bundles, on a small project in umbel's place: the real pip, the real installer."""

import json
import re
import subprocess
import sys

import pytest

from deploy.bundle import LOCK, SUMS, WHEELS, Plan, images, verify_bundle, write_bundle
from umbel.cli.main import main
from umbel.errors import ConfigError, DeployError
from umbel.paths import Path

PROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]

[project]
name = "tiny-umbel"
version = "0.3.1"
"""
# A build backend of its own: the wheel is made without any network.
BACKEND = """
import zipfile

def build_wheel(folder, settings=None, metadata=None):
    name = "tiny_umbel-0.3.1-py3-none-any.whl"
    info = "tiny_umbel-0.3.1.dist-info"
    files = {
        "tiny_umbel.py": "def run():\\n    print('tiny here')\\n",
        f"{info}/METADATA": "Metadata-Version: 2.1\\nName: tiny-umbel\\nVersion: 0.3.1\\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\\nGenerator: t\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n",
        f"{info}/entry_points.txt": "[console_scripts]\\numbel = tiny_umbel:run\\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{file},,\\n" for file in files) + f"{info}/RECORD,,\\n"
    with zipfile.ZipFile(f"{folder}/{name}", "w") as archive:
        for file, text in files.items():
            archive.writestr(file, text)
    return name
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    project = tmp_path_factory.mktemp("project")
    (project / "pyproject.toml").write_text(PROJECT)
    (project / "backend.py").write_text(BACKEND)
    target = tmp_path_factory.mktemp("bundles") / "bundle"
    sums = write_bundle(Plan(project, target, options=("--no-index",)))
    return target, sums


@pytest.fixture
def bundle(made, tmp_path):
    import shutil

    return Path(shutil.copytree(made[0], tmp_path / "bundle")), made[1]


def test_it_holds_wheels_their_hashes_the_images_and_the_files(bundle):
    target, sums = bundle
    assert verify_bundle(target, sums=sums) == len([p for p in target.rglob("*") if p.is_file()]) - 1
    (line,) = (target / LOCK).read_text().splitlines()
    assert line.startswith("tiny-umbel==0.3.1 --hash=sha256:")
    manifest = json.loads((target / "MANIFEST.json").read_text())
    assert manifest["files"][f"{WHEELS}/tiny_umbel-0.3.1-py3-none-any.whl"]["size"] > 0
    shown = (target / "images.txt").read_text().splitlines()
    assert any(image.startswith("nginxinc/nginx-unprivileged:") for image in shown)
    assert "umbel:0.1.0-cpu" in shown
    for name in ("compose/site.yaml", "systemd/umbel-agent.service", "proxy/nginx.conf.template", "docker/Dockerfile"):
        assert (target / "deploy" / name).is_file()
    assert not list((target / "deploy").rglob("*.py"))


def install(target, prefix):
    return subprocess.run(
        ["sh", str(target / "install.sh"), "--prefix", str(prefix), "--python", sys.executable],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
    )


@pytest.mark.slow
def test_it_installs_without_a_network_and_upgrades_in_one_step(bundle, tmp_path):
    prefix = tmp_path / "opt" / "umbel"
    prefix.parent.mkdir()
    for times in (1, 2):
        done = install(bundle[0], prefix)
        assert done.returncode == 0, done.stderr
        said = subprocess.run([str(prefix / "bin" / "umbel")], capture_output=True, text=True, check=False)
        assert said.stdout == "tiny here\n"
        assert (prefix.parent / "umbel.previous").exists() is (times == 2)
    assert not (prefix.parent / "umbel.new").exists()
    wheel = next((bundle[0] / WHEELS).iterdir())
    wheel.write_bytes(wheel.read_bytes() + b"x")
    done = install(bundle[0], prefix)
    assert done.returncode == 1
    assert "altered or is not whole" in done.stderr
    said = subprocess.run([str(prefix / "bin" / "umbel")], capture_output=True, text=True, check=False)
    assert said.stdout == "tiny here\n"  # what was there goes on working


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda t: (t / LOCK).write_text("evil==1\n"), "was altered"),
        (lambda t: (t / LOCK).unlink(), "is missing"),
        (lambda t: (t / WHEELS / "evil-1-py3-none-any.whl").write_text(""), "belongs to no bundle"),
        (lambda t: (t / "link").symlink_to("/etc/passwd"), "is a link"),
        (lambda t: (t / SUMS).write_text("0" * 64 + "  ../../etc/passwd\n"), "no checksum"),
        (lambda t: (t / SUMS).write_text("nonsense\n"), "no checksum"),
        (lambda t: (t / SUMS).unlink(), "cannot be read"),
    ],
)
def test_what_changed_on_the_way_is_said(bundle, change, sentence):
    change(bundle[0])
    with pytest.raises(DeployError, match=sentence):
        verify_bundle(bundle[0])


def test_another_bundle_with_right_sums_of_its_own_is_not_the_one(bundle):
    with pytest.raises(DeployError, match="ask for the bundle again"):
        verify_bundle(bundle[0], sums="0" * 64)


def test_a_folder_in_use_and_a_project_that_is_none(made, tmp_path):
    with pytest.raises(DeployError, match="not empty"):
        write_bundle(Plan(tmp_path, made[0]))
    with pytest.raises(DeployError, match="no checkout"):
        write_bundle(Plan(tmp_path, tmp_path / "new"))
    with pytest.raises(DeployError, match="no wheel"):
        write_bundle(Plan(tmp_path / "a.whl", tmp_path / "newer"))


def test_pip_s_failure_is_one_sentence(tmp_path):
    project = tmp_path / "project"
    project.mkdir()
    (project / "pyproject.toml").write_text(PROJECT)
    (project / "backend.py").write_text(
        BACKEND.replace("Version: 0.3.1\\n", "Version: 0.3.1\\nRequires-Dist: no-such\\n")
    )
    with pytest.raises(DeployError, match=r"pip wheel failed \(ERROR: .*no-such.*\): check the network"):
        write_bundle(Plan(project, tmp_path / "bundle", options=("--no-index",)))


def test_images_are_those_of_the_files():
    import deploy

    source = Path(deploy.__file__).parent
    found = images(source)
    assert found == sorted(found)
    assert [image.rpartition(":")[0] for image in found] == ["nginxinc/nginx-unprivileged", "python", "umbel", "umbel"]
    built = re.findall(r"^ARG PYTHON_IMAGE=(.*)$", (source / "docker" / "Dockerfile").read_text(), re.MULTILINE)
    assert set(built) <= set(found)  # else a machine without a network could not build umbel's own


def test_images_are_read_from_compose_chart_and_dockerfiles(tmp_path):
    for name, text in (
        ("compose/a.yaml", 'x:\n  image: "${A:-one:1}"\n  image: two:2\n'),
        ("helm/c/values.yaml", "image:\n  repository: three\n  tag: 3-x\n  digest: ''\n"),
        ("docker/Dockerfile.z", "ARG PYTHON_IMAGE=four:4\nFROM ${PYTHON_IMAGE}\n"),
    ):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(text)
    assert images(tmp_path) == ["four:4", "one:1", "three:3-x", "two:2"]


@pytest.mark.parametrize("there", [False, True])
def test_a_bundle_that_fails_leaves_nothing_so_that_the_next_try_works(made, tmp_path, there):
    target = tmp_path / "new"
    if there:
        target.mkdir()
    for _ in range(2):
        with pytest.raises(DeployError, match="no checkout"):
            write_bundle(Plan(tmp_path, target, options=("--no-index",)))
        assert target.exists() is there
        assert not there or list(target.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for target in (tmp_path / "file" / "below", Path("/proc/nowhere")):
        assert main(["bundle", "write", str(target), "--project", str(tmp_path)]) == 85
        said = capsys.readouterr().err.strip()
        assert "cannot be written to" in said
        assert len(said.splitlines()) == 1


def test_a_thin_bundle_is_configuration_alone(tmp_path):
    import io
    import zipfile

    from flwr.cli.build import build_fab_from_disk
    from flwr.cli.config_utils import load_and_validate

    from client.agent.bundle import read_bundle
    from umbel.cli.options import app_options
    from umbel.config import RunConfig

    assert main(["bundle", "thin", str(tmp_path / "app"), "-c", "federation.rounds=2", "-c", "lora.rank=4"]) == 0
    given = app_options(tmp_path / "app")
    assert RunConfig.from_flat(given) == RunConfig.from_flat({"federation.rounds": 2, "lora.rank": 4})
    assert given.keys() == RunConfig().to_flat().keys()  # every option can be overridden at submission
    load_and_validate(tmp_path / "app" / "pyproject.toml", check_module=True)
    (tmp_path / "app.fab").write_bytes(data := build_fab_from_disk(tmp_path / "app"))
    names = zipfile.ZipFile(io.BytesIO(data)).namelist()
    assert not [name for name in names if name.endswith(".py")]
    assert read_bundle(tmp_path / "app.fab").code is False
    assert main(["bundle", "thin", str(tmp_path / "app")]) == 0  # again, over itself
    (tmp_path / "app" / "evil.py").write_text("")
    assert main(["bundle", "thin", str(tmp_path / "app")]) == 85


def test_a_thin_bundle_of_nonsense(tmp_path):
    from deploy.thin import write_thin

    with pytest.raises(ConfigError):
        write_thin(tmp_path / "app", {"lora.rang": 4})
    assert not (tmp_path / "app").exists()
