import subprocess
import sys

import click
import pytest

from tests.coordinator.sample_run import write_run
from umbel import __version__, errors
from umbel.cli import main as entry
from umbel.cli.lazy import LazyGroup
from umbel.cli.main import COMMANDS, main


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv("UMBEL_ROOT", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")
    return write_run(tmp_path)


def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)


def test_help_imports_no_heavy_module():
    code = (
        "import sys\nfrom umbel.cli.main import main\nassert main(['--help']) == 0\n"
        "heavy = {'torch', 'flwr', 'transformers', 'ray', 'matplotlib', 'numpy', 'peft'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = python(code)
    assert done.returncode == 0, done.stderr
    for name in ("run", "demo", "report", "export", "evaluate", "runs", "config", "version"):
        assert f" {name} " in done.stdout


def test_version(capsys):
    assert main(["version"]) == 0
    text = capsys.readouterr().out
    assert f"umbel {__version__}" in text
    assert "flwr 1." in text


def test_every_listed_command_answers_help(capsys):
    for name in entry.assemble().commands:
        assert main([name, "--help"]) == 0, name
    assert "Usage: umbel" in capsys.readouterr().out


def test_a_module_that_is_not_there_is_left_out():
    group = LazyGroup({"here": ("umbel.cli.version", "x"), "gone": ("umbel.cli.no_such", "y")}, name="g")
    assert list(group.commands) == ["here"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["rusn"], "No such command 'rusn'"),
        (["report"], "Missing argument 'RUN'"),
        (["report", "x", "--no-such"], "No such option '--no-such'"),
        (["evaluate", "x", "--limit", "-1"], "Invalid value for '--limit'"),
    ],
)
def test_wrong_usage_is_one_sentence_and_2(arguments, sentence, capsys):
    assert main(arguments) == 2
    text = capsys.readouterr().err
    assert text.startswith(sentence)
    assert text.count("\n") == 1
    assert "--help" in text


def test_no_arguments_shows_the_help(capsys):
    assert main([]) == 2
    assert "demo" in "".join(capsys.readouterr())


def leaves(error):
    @click.command()
    def command():
        raise error

    return lambda: command


@pytest.mark.parametrize("kind", [k for k in vars(errors).values() if isinstance(k, type)])
def test_every_error_of_ours_is_its_sentence_and_its_code(kind, monkeypatch, capsys):
    monkeypatch.setattr(entry, "assemble", leaves(kind("Something [bold]was[/bold] wrong: mend it.")))
    assert main(["x"][:0]) == kind.exit_code
    assert capsys.readouterr().err == "Something [bold]was[/bold] wrong: mend it.\n"


def test_a_defect_is_one_sentence_without_a_traceback(monkeypatch, capsys):
    monkeypatch.delenv("UMBEL_DEBUG", raising=False)
    monkeypatch.setattr(entry, "assemble", leaves(ZeroDivisionError("division\nby zero")))
    assert main([]) == 1
    text = capsys.readouterr().err
    assert text == (
        "umbel failed unexpectedly (ZeroDivisionError: division by zero): set UMBEL_DEBUG=1 to see where.\n"
    )
    monkeypatch.setenv("UMBEL_DEBUG", "1")
    assert main([]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_ctrl_c_is_130(monkeypatch, capsys):
    monkeypatch.setattr(entry, "assemble", leaves(KeyboardInterrupt()))
    assert main([]) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_every_code_has_a_section_in_the_document():
    from pathlib import Path

    text = (Path(entry.__file__).parents[2] / "docs" / "exit-codes.md").read_text()
    kinds = [k for k in vars(errors).values() if isinstance(k, type)]
    for kind in kinds:
        assert f"\n## {kind.exit_code}\n" in text, kind
        assert f"| [{kind.exit_code}](#{kind.exit_code}) | `{kind.__name__}` |" in text, kind
    assert {f"\n## {code}\n" in text for code in (0, 2, entry.INTERRUPTED)} == {True}
    assert len({kind.exit_code for kind in kinds}) == len(kinds)


def test_report(runs, capsys):
    assert main(["report", "one"]) == 0
    text = capsys.readouterr().out
    assert (runs / "report.html").is_file()
    assert str(runs / "report.html") in text
    assert "gain, points" in text
    assert "+23.0" in text


def test_runs(runs, tmp_path, capsys):
    write_run(tmp_path, finished=False, **{"run.id": "two"})
    (runs.parent / "three").mkdir()
    (runs.parent / "three" / "config.toml").write_text("damaged [")
    assert main(["runs"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "finished" in lines["one"]
    assert "3/3" in lines["one"]
    assert "95.0%" in lines["one"]
    assert "unfinished" in lines["two"]
    assert "damaged" in lines["three"]


def test_no_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("UMBEL_ROOT", str(tmp_path))
    assert main(["runs"]) == 0
    assert "No runs in" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["report", "nine"], 70, "Run 'nine' is not in"),
        (["export", "one", "target"], 70, "has no adapter yet"),
        (["evaluate", "one"], 70, "has no adapter yet"),
        (["config", "privcy"], 10, "Group 'privcy' is unknown"),
    ],
)
def test_refusals(runs, capsys, arguments, code, sentence):
    assert main(arguments) == code
    text = capsys.readouterr().err
    assert sentence in text
    assert "Traceback" not in text


def test_config_shows_every_option(monkeypatch, capsys):
    from umbel.config import RunConfig

    monkeypatch.setenv("COLUMNS", "240")
    entry_out = __import__("umbel.cli.console", fromlist=["out"]).out
    monkeypatch.setattr(entry_out, "_width", 240)
    assert main(["config"]) == 0
    text = capsys.readouterr().out
    for key in RunConfig().to_flat():
        assert f"{key} " in text
    assert "Concentration of the Dirichlet partition over answers" in text
    assert "iid | dirichlet | question-type | natural" in text


def test_the_table_of_commands_names_modules_with_an_app():
    import importlib
    import importlib.util

    import typer

    for module, _ in COMMANDS.values():
        if importlib.util.find_spec(module) and module.rsplit(".", 1)[1] not in {
            "base",
            "privacy",
            "strategies",
            "audit",
        }:
            assert isinstance(importlib.import_module(module).app, typer.Typer)
