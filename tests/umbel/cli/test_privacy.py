import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from privacy.accounting import Event, epsilon
from privacy.ledger import Budget, Ledger
from privacy.terms import Mechanism, Relation, Sampler, Unit
from umbel.cli.privacy import app
from umbel.errors import LedgerError, PlanError

EVENT = Event(Mechanism.GAUSSIAN, Sampler.POISSON, Relation.ADD_REMOVE, 1.5, 0.1, 20, 20)


def call(*arguments: str):
    return CliRunner().invoke(app, list(arguments))


def answer(*arguments: str) -> dict:
    result = call(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.output.splitlines()[-1])


def test_plan_calibrates_the_noise() -> None:
    options = ["plan", "--epsilon", "4", "--delta", "1e-5", "--examples", "650", "--batch-size", "64", "--steps", "160"]
    body = answer(*options)
    assert 3.95 < body["epsilon"] <= 4
    z = body["noise_multiplier"]
    event = Event(Mechanism.GAUSSIAN, Sampler.POISSON, Relation.ADD_REMOVE, z, 64 / 650, 160, 160)
    assert body["epsilon"] == epsilon([event], 1e-5)
    text = call(*options).output
    assert f"{z:.4f}" in text
    assert body["statement"] in text


@pytest.mark.parametrize(
    "options",
    ["--unit client", "--unit client --sampler full", "--sampler cyclic", "--sampler shuffled",
     "--sampler fixed-size --relation replace-one",
     "--unit client --sampler full --place update --relation replace-one"],
)  # fmt: skip
def test_other_plans_keep_the_budget(options: str) -> None:
    body = answer("plan", "--epsilon", "6", *options.split())
    assert 5.9 < body["epsilon"] <= 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--epsilon -1", "epsilon budget"),
        ("--epsilon nan", "epsilon budget"),
        ("--delta 2", "delta"),
        ("--delta 0.01", "one over the 650 examples"),
        ("--batch-size 651", "sampling rate"),
        ("--batch-size 0", "at least 1"),
        ("--unit house", "expected one of example, client"),
        ("--sampler lottery", "expected one of poisson"),
        ("--sampler fixed-size", "replace-one"),
        ("--place coordinator", "single examples"),
        ("--noise-multiplier 0.3", "more than the budget"),
        ("--noise-multiplier -3", "noise multiplier"),
    ],
)
def test_bad_input_gets_one_sentence(options: str, message: str) -> None:
    result = call("plan", *options.split())
    assert isinstance(result.exception, PlanError)
    assert message in str(result.exception)
    assert "\n" not in str(result.exception)


def test_spent_reads_files_and_folders(tmp_path: Path) -> None:
    for name in ("a", "b"):
        with Ledger.open(tmp_path / "run" / name / "privacy.sqlite") as ledger:
            ledger.set_budget(Budget(8.0, 1e-6), dataset=name, unit=Unit.EXAMPLE)
            ledger.reserve(EVENT, dataset=name, unit=Unit.EXAMPLE)
    (tmp_path / "run" / "other.sqlite").write_text("not a ledger")
    rows = answer("spent", str(tmp_path / "run"))["spent"]
    assert [row["dataset"] for row in rows] == ["a", "b"]
    assert rows[0]["epsilon"] == epsilon([EVENT], 1e-5)
    assert (rows[0]["budget"], rows[0]["steps"], rows[0]["relation"]) == (8.0, 20, "add-remove")
    text = call("spent", str(tmp_path / "run" / "a" / "privacy.sqlite"), "--delta", "1e-6").output
    assert f"epsilon {epsilon([EVENT], 1e-6):.4f}" in text


def test_spent_refuses_what_it_cannot_read(tmp_path: Path) -> None:
    for where in (tmp_path, tmp_path / "missing.sqlite"):
        result = call("spent", str(where))
        assert isinstance(result.exception, LedgerError)
        assert "\n" not in str(result.exception)
    assert not (tmp_path / "missing.sqlite").exists()


def test_an_empty_ledger_has_spent_nothing(tmp_path: Path) -> None:
    Ledger.open(tmp_path / "l.sqlite").close()
    assert "Nothing was spent" in call("spent", str(tmp_path / "l.sqlite")).output
