"""Scenario files: what they say, and what is refused before anything starts."""

import pytest

from simulations.cluster import RayNode
from simulations.lanes import effective_lanes
from simulations.scenario import load_scenario, scenarios
from simulations.simulate import check, named
from simulations.sizing import Footprint, plan_actors
from tests.federated import options
from umbel.cli.main import main
from umbel.config import RunConfig
from umbel.errors import ConfigError, DataError, FederationError

GB = 1 << 30


@pytest.mark.parametrize("name", sorted(scenarios()))
def test_every_scenario_opens_with_its_command_and_loads(name):
    text = scenarios()[name].read_text()
    assert text.splitlines()[0] == f"# umbel simulate {name}"
    runs = load_scenario(name)
    assert all(run.title and run.title != name for run in runs)
    assert int(name.rpartition("-")[2]) == runs[0].config.federation.clients


def test_the_scenarios_that_are_promised_are_there():
    assert set(scenarios()) == {
        "hospitals-5",
        "phones-300",
        "noniid-100",
        "private-300",
        "byzantine-50",
        "mixed-ranks-40",
        "missing-modality-40",
    }


def test_options_override_and_lists_sweep():
    runs = load_scenario("phones-300", {"seed": [1, 2], "epsilon": [2, 8.0], "fleet.deadline": 60, "faults.nan": 0.1})
    assert [(run.config.run.seed, run.config.privacy.epsilon) for run in runs] == [
        (1, 2.0),
        (1, 8.0),
        (2, 2.0),
        (2, 8.0),
    ]
    assert all(run.fleet.deadline == 60.0 and run.fault_plan.nan == 0.1 for run in runs)
    assert runs[1].point == {"run.seed": 1, "privacy.epsilon": 8.0}
    ids = [named(run, place, len(runs), "x").config.run.id for place, run in enumerate(runs)]
    assert ids == [f"phones-300-x-{n:02d}" for n in (1, 2, 3, 4)]


def test_one_value_ends_a_sweep_of_the_file():
    assert len(load_scenario("byzantine-50")) == 3
    assert [run.config.strategy.robust for run in load_scenario("byzantine-50", {"strategy.robust": "krum"})] == [
        "krum"
    ]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"fleet.nome": "phones"}, r"Option 'fleet\.nome' is unknown: did you mean 'fleet\.name'"),
        ({"fleets.name": "phones"}, r"Option 'fleets\.name' is unknown"),
        ({"fleet.name": "tablets"}, r"Fleet 'tablets' is unknown"),
        ({"train.bach-size": 3}, r"Option 'train\.bach-size' is unknown"),
        ({"faults.dropout": 1.5}, r"faults\.dropout' has the value 1\.5"),
        ({"federation.lanes": 0}, r"federation\.lanes' has the value 0"),
        ({"faults.nan": 0.7, "faults.shape": 0.7}, r"add up to more than 1"),
        ({"seed": []}, r"expected a list of values"),
        ({"seed": list(range(65))}, r"65 runs, expected at most 64"),
        ({"nonsense": 3}, r"Option 'nonsense' is unknown"),
    ],
)
def test_what_does_not_exist_is_refused(overrides, words):
    with pytest.raises(ConfigError, match=words):
        load_scenario("phones-300", overrides)


def test_an_unknown_scenario_is_refused():
    with pytest.raises(ConfigError, match=r"did you mean 'phones-300'"):
        load_scenario("phones-30")


@pytest.fixture
def scenario(tiny_root, tmp_path):
    def make(**changes):
        import tomli_w

        path = tmp_path / "tiny.toml"
        flat = options(tiny_root) | {"run.directory": str(tmp_path / "runs"), "run.id": "auto"}
        path.write_text(tomli_w.dumps(flat))
        return load_scenario(str(path), {key.replace("__", ".").replace("_", "-"): v for key, v in changes.items()})[0]

    return make


def test_more_devices_than_data_are_refused(scenario):
    check(scenario())
    with pytest.raises(DataError, match=r"100 devices .* lower federation\.clients"):
        check(scenario(federation__clients=100))


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nohost", "127.0.0.1:99999", "ray://127.0.0.1:10001"])
def test_a_dead_cluster_is_refused(scenario, address):
    with pytest.raises(FederationError, match=r"(No Ray cluster answers|is no address)"):
        check(scenario(), address)


NEED = Footprint(base_mb=1000, load_mb=500, lane_mb=100, activations_mb=200, process_mb=400, quantization="nf4")


def plan(memory_gb, cpus=4, lanes=32, actors=0, clients=300, threads=1, nodes=1):
    flat = {"federation.clients": clients, "federation.lanes": lanes, "train.threads": threads}
    config = RunConfig.from_flat(flat)
    machines = [RayNode(cpus, 0.0, int(memory_gb * GB)) for _ in range(nodes)]
    return plan_actors(config, machines, actors=actors, need=NEED)


def test_actors_are_as_many_as_fit():
    assert plan(64).actors == 4
    # 20 GB: 18.4 GB may be used, less 2.4 GB for the coordinator and the store; an actor takes 4.8 GB.
    assert plan(20).actors == 3
    assert plan(64, threads=2).actors == 2
    assert plan(64, nodes=3, clients=600).actors == 12
    assert plan(64, clients=9).actors == 2  # 8 lanes: there is no work for a third
    assert plan(64).total_mb == pytest.approx(1900 + 512 + 4 * 4800)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"memory_gb": 6}, r"1 actor of 32 lanes do not fit: .* set federation\.lanes=\d+ or less"),
        ({"memory_gb": 2}, r"choose a smaller base or model\.quantization=nf4"),
        ({"memory_gb": 20, "actors": 4}, r"4 actors of 32 lanes do not fit: .* simulation\.actors=3 or less"),
        ({"memory_gb": 64, "threads": 8}, r"no machine has that many: lower train\.threads"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, words):
    with pytest.raises(ConfigError, match=words):
        plan(**arguments)


def test_the_lanes_that_a_refusal_names_do_fit():
    with pytest.raises(ConfigError) as caught:
        plan(6)
    most = int(str(caught.value).partition("federation.lanes=")[2].split()[0])
    assert plan(6, lanes=most, cpus=1).actors == 1


def test_lanes_never_depend_on_the_machine():
    assert [effective_lanes(32, cohort) for cohort in (3, 20, 100, 300)] == [8, 8, 25, 32]
    assert effective_lanes(1, 300) == 1
    assert plan(64, cpus=1).lanes == plan(64, cpus=16).lanes


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["nowhere-7"], 10, "is unknown"),
        (["phones-300", "-c", "fleet.name=tablets"], 10, "Fleet 'tablets' is unknown"),
        (["phones-300", "-c", "fleet.nme=phones"], 10, "did you mean 'fleet.name'?"),
        (["phones-300", "--address", "127.0.0.1:1"], 75, "No Ray cluster answers"),
        (["phones-300", "-c", "federation.clients=5000"], 20, "5000 devices"),
        (["phones-300", "-c", "train.threads=4000"], 10, "lower train.threads"),
    ],
)
def test_the_command_says_one_sentence_and_starts_nothing(arguments, code, words, capsys, monkeypatch, tmp_path):
    import ray

    monkeypatch.setenv("UMBEL_ROOT", str(tmp_path))
    monkeypatch.setattr(ray, "init", lambda *_, **__: pytest.fail("Ray was started"))
    assert main(["simulate", *arguments, "--plan"]) == code
    said = capsys.readouterr().err
    assert words in " ".join(said.split())
    assert said.strip().count("\n") <= 4
    assert "Traceback" not in said
    assert not (tmp_path / "runs").exists()
