"""Where code could hide in a bundle that says it has none."""

import zipfile

import pytest

from client.agent.bundle import Bundle, read_bundle
from deploy.thin import write_thin
from umbel.errors import SiteError


@pytest.fixture
def folder(tmp_path):
    write_thin(tmp_path / "app", {"run.id": "t"})
    return tmp_path / "app"


def put(folder, name, content="x"):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def archived(folder, target):
    with zipfile.ZipFile(target, "w") as archive:
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            archive.write(path, path.relative_to(folder).as_posix())
    return target


def test_a_thin_bundle_has_no_code_and_one_hash(folder, tmp_path):
    found = read_bundle(folder)
    assert not found.code
    put(folder, ".info/CONTENT", "Flower's list")
    assert read_bundle(folder) == read_bundle(archived(folder, tmp_path / "a.fab")) == found


@pytest.mark.parametrize(
    "name",
    [
        "__pycache__/client.cpython-311.pyc",
        "client/__pycache__/x.py",
        "client/__pycache__/x.toml",
        ".info/evil.py",
        ".info/evil.toml",
        "a/.info/CONTENT",
        "client.pyc",
        "client/app.so",
        "sitecustomize.pth",
    ],
)
def test_nothing_that_could_be_imported_is_passed_over(folder, tmp_path, name):
    before = read_bundle(folder)
    put(folder, name)
    after = read_bundle(folder)
    assert after.code
    assert after.hash != before.hash
    assert read_bundle(archived(folder, tmp_path / "a.fab")) == after


def test_what_python_compiles_while_a_bundle_runs_does_not_change_its_hash(folder, tmp_path):
    put(folder, "client/app.py", "print()")
    before = read_bundle(folder)
    put(folder, "client/__pycache__/app.cpython-311.pyc")
    assert read_bundle(folder) == before == Bundle(before.hash, True)
    # Nobody compiles into an archive: there it was put.
    assert read_bundle(archived(folder, tmp_path / "a.fab")).hash != before.hash
    put(folder, "client/__pycache__/other.cpython-311.pyc")
    assert read_bundle(folder).hash != before.hash


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ('[tool.flwr.app.components]\nclientapp = "os:system"', True),
        ('[tool.flwr.app.components]\nclientapp = "client.client_app:app"\nserverapp = "evil:app"', True),
        ('[tool.flwr.app.components]\nclientapp = "client.client_app:app2"', True),
        ("[tool.flwr.app.components]\nclientapp = 1", True),
        ('[tool.flwr.app]\ncomponents = "os:system"', True),
        ('tool = "x"', True),
        ("no table", True),
        ('[tool.flwr.app.components]\nclientapp = "simulations.client_app:app"', False),
        ("[project]", False),
    ],
)
def test_an_app_that_umbel_does_not_bring_along_is_code(folder, text, code):
    put(folder, "pyproject.toml", text)
    assert read_bundle(folder).code is code


def test_a_bundle_holds_no_links(folder, tmp_path):
    (folder / "README.txt").symlink_to(tmp_path)
    with pytest.raises(SiteError, match=r"holds the link README\.txt"):
        read_bundle(folder)
