"""``umbel simulate`` from end to end on a local Ray: devices, faults, clock, resume, and the same result every time."""

import json

import numpy as np
import pytest
import tomli_w

from simulations.scenario import load_scenario
from simulations.simulate import named, read_report, simulate
from tests.federated import options
from tests.simulations.runs import adapter
from umbel.cli.main import main
from umbel.errors import ConfigError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def scenario_file(tiny_root, tmp_path_factory):
    root = tmp_path_factory.mktemp("simulate")
    flat = options(tiny_root, federation__clients=8, federation__rounds=2, federation__lanes=32) | {
        "run.directory": str(root / "runs"),
        "run.id": "auto",
        "fleet.name": "mixed",
        "faults.dropout": 0.2,
        "faults.nan": 0.2,
        "simulation.object-store-mb": 200,
    }
    path = root / "tiny.toml"
    path.write_text(tomli_w.dumps(flat))
    return path


def run(path, name, **overrides):
    chosen = {key.replace("__", "."): value for key, value in overrides.items()}
    (scenario,) = load_scenario(str(path), {"run.id": name, **chosen})
    return simulate(named(scenario))


@pytest.fixture(scope="module")
def first(scenario_file):
    return run(scenario_file, "first")


def lines(folder):
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in found if line["kind"] == "round"]


def test_a_run_says_what_the_fleet_would_have_taken(first):
    report = read_report(first)
    virtual = report["virtual"]
    assert [line["round"] for line in virtual["rounds"]] == ["1", "2"]
    assert virtual["seconds"] == pytest.approx(sum(line["seconds"] for line in virtual["rounds"]))
    for told, line in zip(virtual["rounds"], lines(first), strict=True):
        assert told["asked"] == line["cohort"] == 8
        assert told["arrived"] + sum(told["lost"].values()) == 8
        assert line["survivors"] == 8 - line["rejected"] <= told["arrived"]
    assert sum(line["rejected"] for line in lines(first)) > 0
    assert report["actors"] >= 1
    assert report["lanes"] == 8


def test_another_number_of_actors_gives_the_same_bits(first, scenario_file):
    other = run(scenario_file, "one-actor", simulation__actors=1)
    mine, yours = adapter(first), adapter(other)
    assert all(np.array_equal(mine[name], yours[name]) for name in mine)
    assert read_report(first)["virtual"] == read_report(other)["virtual"]


def test_a_stopped_run_resumes_with_its_clock(first, scenario_file, monkeypatch):
    from coordinator import federation

    class Stopped(BaseException):
        pass

    real, count = federation.save_checkpoint, [0]

    def stop(*arguments):
        real(*arguments)
        count[0] += 1
        if count[0] == 1:
            raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(federation, "save_checkpoint", stop)
        with pytest.raises(Stopped):
            run(scenario_file, "stopped")
    with pytest.raises(ConfigError, match="another fleet or other faults"):
        run(scenario_file, "stopped", fleet__name="phones")
    again = run(scenario_file, "stopped")
    mine, yours = adapter(first), adapter(again)
    assert all(np.array_equal(mine[name], yours[name]) for name in mine)
    assert read_report(first)["virtual"]["rounds"] == read_report(again)["virtual"]["rounds"]


def test_the_command_runs_a_sweep_and_compares(scenario_file, capsys):
    arguments = ["-c", "seed=[0,1]", "-c", "federation.rounds=1", "-c", "run.id=sweep"]
    assert main(["simulate", str(scenario_file), *arguments]) == 0
    said = capsys.readouterr().out
    root = scenario_file.parent / "runs"
    assert (root / "sweep-01" / "adapter" / "adapter_model.safetensors").is_file()
    assert (root / "sweep-02" / "simulate.log").stat().st_size > 0
    (page,) = root.glob("tiny-*.html")
    assert str(page) in said.replace("\n", "")
    assert "This fleet (mixed) would have taken" in " ".join(said.split())


def test_overlapping_rounds_are_reproducible(scenario_file):
    """FedBuff on the virtual clock: replies come in its order, whatever actor is done first."""
    changes = {"strategy__buffer": 3, "faults__nan": 0.0, "faults__dropout": 0.1}
    one, two = (run(scenario_file, f"buffer-{n}", simulation__actors=n, **changes) for n in (1, 2))
    mine, yours = adapter(one), adapter(two)
    assert all(np.array_equal(mine[name], yours[name]) for name in mine)
    assert read_report(one)["virtual"]["seconds"] == read_report(two)["virtual"]["seconds"] > 0
    assert len(lines(one)) == 2
