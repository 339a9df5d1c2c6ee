"""The bundle that ``flwr run`` sends to every site: exactly our packages' code, and nothing else of a checkout."""

import io
import json
import subprocess
import sys
import zipfile

import pytest

from tests.e2e.checkout import PACKAGES, copy_checkout, tracked

FLOWERS_OWN = {"pyproject.toml", ".info/CONTENT"}
DECOYS = (
    "deploy/secret.json",
    "client/secret.json",
    "client/site.key",
    "privacy/ledger/ledger.sqlite",
    "mllm/bases/demo/notes.md",
    "coordinator/passwords.yaml",
    "umbel/config/local.toml",
    "secret.json",
    "secret.py",
    "runs/one/config.toml",
    "sites/hospital.json",
    "tests/client/patients.jsonl",
    "nested/client/patients.py",
)
SECRET = "correct horse battery staple"


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    """A copy of the checkout into which secrets have strayed."""
    folder = copy_checkout(tmp_path_factory.mktemp("bundle") / "umbel")
    for name in DECOYS:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps({"secret": SECRET}))
    return folder


@pytest.fixture(scope="module")
def bundle(app):
    """What ``flwr build`` and ``flwr run`` make of it, both with this function."""
    from flwr.cli.build import build_fab_from_disk

    data = build_fab_from_disk(app)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return len(data), {name: archive.read(name) for name in archive.namelist()}


def code():
    return {name for name in tracked() if name.endswith(".py") and name.split("/")[0] in PACKAGES}


def test_the_bundle_holds_exactly_our_code(bundle, app):
    _, files = bundle
    assert set(files) == code() | {"README.md"} | FLOWERS_OWN
    for name in set(files) - FLOWERS_OWN:
        assert files[name] == (app / name).read_bytes()


def test_no_package_is_dropped(bundle):
    """Flower leaves out folders and files of certain names (build, lib, parts, env, test_*.py) without a word."""
    _, files = bundle
    folders = {name.rpartition("/")[0] for name in code()}
    assert {name.rpartition("/")[0] for name in files if name.endswith(".py")} == folders
    assert {name.split("/")[0] for name in folders} == set(PACKAGES)
    for folder in folders:
        assert f"{folder}/__init__.py" in files, f"{folder} is no package in the bundle"


def test_no_secret_and_no_other_folder_travels(bundle):
    _, files = bundle
    assert not set(DECOYS) & set(files)
    assert not [name for name, data in files.items() if SECRET.encode() in data]
    tops = {name.split("/")[0] for name in files}
    assert not tops & {"tests", "deploy", "benchmarks", "docs", "runs"}


def test_without_the_list_the_secrets_would_travel(app, tmp_path):
    """The decoys are a test only if something would take them: Flower's defaults do."""
    from flwr.cli.build import build_fab_from_files
    from flwr.cli.utils import collect_files

    text = (app / "pyproject.toml").read_text("utf-8")
    before, _, rest = text.partition("fab-include = [")
    files = dict(collect_files(app)) | {"pyproject.toml": (before + rest.partition("]\n")[2]).encode()}
    with zipfile.ZipFile(io.BytesIO(build_fab_from_files(files)[0])) as archive:
        assert {"deploy/secret.json", "client/secret.json", "secret.py"} <= set(archive.namelist())


def test_the_bundle_is_within_flowers_limits(bundle):
    size, files = bundle
    assert size < 10 * 1024 * 1024
    assert max(map(len, files.values())) < 1024 * 1024
    assert len(files) <= 1000
    assert max(name.count("/") + 1 for name in files) <= 10


@pytest.mark.slow
def test_both_apps_load_from_the_bundle_alone(bundle, tmp_path):
    """In a fresh process every module of ours comes out of the bundle, none from an installed copy beside it."""
    _, files = bundle
    for name, data in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    script = (
        "import sys, json\n"
        f"root = {str(tmp_path)!r}\n"
        "sys.path.insert(0, root)\n"
        "from simulations.client_app import app as client\n"
        "from simulations.server_app import app as server\n"
        "from flwr.clientapp import ClientApp\n"
        "from flwr.serverapp import ServerApp\n"
        "assert isinstance(client, ClientApp) and isinstance(server, ServerApp)\n"
        f"ours = {PACKAGES!r} + ('deploy', 'benchmarks', 'tests')\n"
        "loaded = {n: m.__file__ for n, m in sys.modules.items() if n.split('.')[0] in ours and m.__file__}\n"
        "print(json.dumps(loaded))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path.parent, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    loaded = json.loads(done.stdout.splitlines()[-1])
    assert {"client.client_app", "coordinator.server_app"} <= set(loaded)
    assert {name.split(".")[0] for name in loaded} <= set(PACKAGES)
    assert [path for path in loaded.values() if not path.startswith(str(tmp_path))] == []
