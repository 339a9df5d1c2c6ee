"""The page that compares runs."""

import pytest

from simulations.compare import read_runs, write_comparison
from tests.federated import options, run_in_memory
from umbel.cli.main import main
from umbel.errors import RunError


@pytest.fixture(scope="module")
def folders(tiny_root, tmp_path_factory):
    root = tmp_path_factory.mktemp("compare")
    made = []
    for name, rate in (("a", 1e-2), ("b<b>", 1e-3)):
        flat = options(tiny_root, federation__rounds=2) | {
            "run.directory": str(root / "runs"),
            "run.id": name.replace("<b>", "b"),
            "train.learning-rate": rate,
        }
        made.append(run_in_memory(flat))
    return made


def test_only_what_differs_is_named(folders):
    runs = read_runs(folders)
    assert [run.differs for run in runs] == [{"train.learning-rate": 0.01}, {"train.learning-rate": 0.001}]
    assert {run.cells["rounds"] for run in runs} == {"2"}


def test_the_page_holds_both_runs_and_their_curves(folders, tmp_path):
    page = write_comparison(folders, tmp_path / "page.html").read_text()
    assert page.count("<svg") == 2
    assert all(f"<td>{folder.name}</td>" in page for folder in folders)
    assert "learning-rate=0.001" in page
    assert "http://" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    )


def test_the_command_writes_the_page(folders, tmp_path, capsys):
    path = tmp_path / "out.html"
    assert main(["compare", *map(str, folders), "-o", str(path)]) == 0
    assert path.is_file()
    assert str(path) in capsys.readouterr().out


def test_one_run_is_nothing_to_compare(folders):
    with pytest.raises(RunError, match="at least two"):
        read_runs(folders[:1])


def test_an_unknown_run_is_one_sentence(folders, capsys):
    assert main(["compare", str(folders[0]), "nowhere"]) == 70
    assert "'nowhere' is not in" in " ".join(capsys.readouterr().err.split())
