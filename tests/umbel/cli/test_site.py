"""``umbel site`` from an empty folder to an approved run, without an agent; and against a running one."""

import json

import pytest
import tomli_w
from typer.testing import CliRunner

from client.agent.audit_log import segments
from client.agent.house import House
from client.agent.server import AgentServer
from tests.client.agent.houses import enrol, flat_options, make_house, policy_for
from tests.federated import make_base, make_folder
from umbel.cli.main import main
from umbel.cli.site import app
from umbel.errors import DataError, DeployError, SiteError


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def said(*arguments):
    result = call(*arguments)
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("r")
    make_base(root / "base")
    make_folder(root / "data")
    return root


@pytest.fixture
def house(root, tmp_path):
    def make(**changes):
        table = policy_for(root, **{"runs__approval": "each", **changes})
        table["model"][0]["name"] = str(root / "base")
        made = make_house(tmp_path / "site", table)
        enrol([made])
        return made

    return make


@pytest.fixture
def run_file(root, tmp_path):
    def make(**changes):
        path = tmp_path / "RUN.toml"
        path.write_text(tomli_w.dumps(flat_options(root, **changes)))
        return path

    return make


def test_init_writes_a_policy_that_check_accepts_once_it_is_enrolled(tmp_path):
    folder = tmp_path / "hospital-x"
    text = said("init", folder)
    public = House.open(folder).identity().public.hex()
    assert public in text
    assert said("init", folder).count(public) == 1
    text = said("check", folder)
    assert "0 coordinators" in text
    assert text.endswith("The site is ready.\n")
    with (folder / "site.toml").open("a") as stream:
        stream.write('\n[[coordinator]]\nname = "c"\nsocket = "c.sock"\n')
    assert isinstance(call("check", folder).exception, SiteError)
    enrol([House.open(folder)])
    assert "roster: 1 sites" in said("check", folder)


def test_check_says_what_is_wrong(house, root):
    made = house()
    text = said("check", made.folder)
    assert "examples in all" in text
    assert "hash " in text
    (made.folder / "seal.key").chmod(0o640)
    error = call("check", made.folder).exception
    assert isinstance(error, DeployError)
    assert "open to others" in str(error)
    (made.folder / "seal.key").chmod(0o600)
    table = policy_for(root)
    table["data"][0]["root"] = str(root / "nowhere")
    (made.folder / "site.toml").write_text(tomli_w.dumps(table))
    assert isinstance(call("check", made.folder).exception, DataError)


def test_a_person_reads_what_a_run_costs_and_approves_it(house, run_file, tmp_path):
    made = house()
    run = run_file(privacy__unit="example", privacy__place="step")
    text = said("review", run, "--site", made.folder)
    for part in (
        "48 examples at this site",
        "epsilon 0.000 is spent of 20",
        "each of 2 local steps",
        "Nothing was signed",
    ):
        assert part in " ".join(text.split()), part
    assert "approved" not in said("log", "show", made.folder) if made.log.exists() else True
    text = said("review", run, "--site", made.folder, "--approve", "--person", "Dr. A", "--days", "3")
    assert "Approved by Dr. A until" in text
    shown = said("log", "--site", made.folder, "--kind", "approved", "--json")
    line = json.loads(shown)
    assert line["person"] == "Dr. A"
    assert line["of"]["options"]["privacy.unit"] == "example"
    assert "Withdrawn" in said("review", run, "--site", made.folder, "--withdraw")
    assert "holds 2 lines and nothing was changed" in said("log", "verify", made.folder)


def test_a_run_that_breaks_the_policy_cannot_be_approved(house, run_file):
    made = house()
    result = call("review", run_file(lora__rank=4), "--site", made.folder, "--approve")
    assert isinstance(result.exception, SiteError)
    assert "LoRA rank 4 is above the 2 that this site allows" in " ".join(result.output.split())
    assert not made.approvals.exists()


def test_a_changed_log_is_found(house, run_file):
    made = house()
    said("review", run_file(), "--site", made.folder, "--approve")
    noted = said("log", "verify", made.folder).split("its end: ")[1].split()[0]
    said("review", run_file(train__amount=1), "--site", made.folder, "--approve")
    assert "holds 2 lines" in said("log", "verify", made.folder, "--noted", noted)
    path = segments(made.log)[0]
    path.write_bytes(path.read_bytes().replace(b'"train.amount":2', b'"train.amount":4'))
    error = call("log", "verify", made.folder).exception
    assert isinstance(error, SiteError)
    assert "signature" in str(error)
    assert isinstance(call("log", "verify", made.folder, "--noted", "x").exception, SiteError)


def test_a_site_that_never_ran_has_no_log(house):
    error = call("log", "verify", house().folder).exception
    assert isinstance(error, SiteError)
    assert "has no log yet" in str(error)


def test_status_and_ledger_of_a_running_agent(house):
    made = house()
    assert isinstance(call("status", made.folder).exception, SiteError)
    assert json.loads(said("ledger", made.folder, "--json")) == []
    with AgentServer(made):
        assert json.loads(said("status", made.folder, "--json"))["site"] == "hospital-a"
        assert "hospital-a" in said("status", made.folder)
        rows = json.loads(said("ledger", made.folder, "--json"))
    assert {(row["unit"], row["budget"], row["epsilon"]) for row in rows} == {("example", 20.0, 0), ("client", 20.0, 0)}
    assert "example" in said("ledger", made.folder)


def test_the_folder_may_come_from_the_environment(house, run_file, monkeypatch):
    made = house()
    monkeypatch.setenv("UMBEL_SITE", str(made.folder))
    said("review", run_file(), "--approve")
    assert "approved" in said("log")
    assert "holds 1 lines" in said("log", "verify")
    assert said("ledger")


def test_the_command_turns_refusals_into_a_sentence_and_a_code(tmp_path, capsys):
    assert main(["site", "check", str(tmp_path)]) == SiteError.exit_code
    assert "umbel site init" in capsys.readouterr().err
