"""What /metrics of a coordinator says, read over HTTP as Prometheus reads it."""

import json
import urllib.request

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from coordinator.metrics import RunsCollector
from tests.federated import options, run_in_memory
from umbel.exposition import Endpoint, expose


def scraped(directory, newest=50):
    registry = CollectorRegistry()
    registry.register(RunsCollector(str(directory), newest))
    with expose(registry, Endpoint()) as running:
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(f"http://127.0.0.1:{running.port}/metrics", timeout=10) as answer:
            text = answer.read().decode()
    samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            samples[sample.name, frozenset(sample.labels.items())] = sample.value
    return text, samples


def of(samples, name, **labels):
    return samples[name, frozenset(labels.items())]


SECURE = {"secagg__enabled": True, "privacy__unit": "example", "privacy__epsilon": 50.0, "privacy__delta": 1e-3}


@pytest.fixture(scope="module")
def secure(tiny_root, tmp_path_factory):
    root = tmp_path_factory.mktemp("secure")
    for clients in (4, 6):
        flat = options(
            tiny_root,
            run__id=f"of{clients}",
            federation__clients=clients,
            federation__rounds=2,
            strategy__name="ffa-lora",
            **SECURE,
        )
        run_in_memory(flat | {"run.directory": str(root)})
    return root


def test_figures_of_a_run_are_those_of_its_lines(secure):
    _, samples = scraped(secure)
    lines = [json.loads(line) for line in (secure / "of4" / "metrics.jsonl").read_text().splitlines()]
    rounds = [line for line in lines if line["kind"] == "round"]
    assert of(samples, "umbel_rounds_total", run="of4") == 2
    assert of(samples, "umbel_rounds_planned", run="of4") == 2
    assert of(samples, "umbel_updates_total", run="of4", outcome="survived") == 8
    assert of(samples, "umbel_updates_total", run="of4", outcome="missing") == 0
    assert of(samples, "umbel_bytes_total", run="of4", direction="up") == sum(line["bytes_up"] for line in rounds) > 0
    assert of(samples, "umbel_bytes_total", run="of4", direction="down") == sum(line["bytes_down"] for line in rounds)
    total = sum(line["seconds"]["total"] for line in rounds)
    assert of(samples, "umbel_phase_seconds_total", run="of4", phase="total") == pytest.approx(total)
    assert of(samples, "umbel_round_survivors", run="of4") == 4
    assert of(samples, "umbel_epsilon_budget", run="of4") == 50
    assert of(samples, "umbel_runs_unreadable") == 0
    stages = {dict(labels)["stage"] for (name, labels) in samples if name == "umbel_secagg_stage_alive"}
    assert len(stages) >= 3


def test_under_secure_aggregation_nothing_is_about_one_client(secure):
    _, samples = scraped(secure)
    lines = (secure / "of4" / "metrics.jsonl").read_text()
    known = {path.name for path in (secure / "of4" / "sites").iterdir()} | {
        path.name for path in (secure / "of6" / "sites").iterdir()
    }
    assert len(known) == 6
    assert any(name in lines for name in known)  # in simulation the file has them: the figures must not
    assert not known & {value for _, labels in samples for _, value in labels}
    assert not any(name in metric for name in known for metric, _ in samples)
    shapes = [
        sorted((name, tuple(sorted(set(dict(labels)) - {"run"}))) for name, labels in samples if ("run", run) in labels)
        for run in ("of4", "of6")
    ]
    assert shapes[0] == shapes[1]  # two clients more give not one series more
    labels = {key for _, pairs in samples for key, _ in pairs}
    allowed = {"run", "state", "strategy", "task", "base", "secagg", "unit", "outcome", "direction", "phase", "stage"}
    assert labels - {"set"} <= allowed


def test_what_sites_have_left_is_theirs_to_say(secure):
    """At the example level each site books; the coordinator knows the bound and states nothing else."""
    _, samples = scraped(secure)
    assert not [name for name, _ in samples if name in ("umbel_epsilon_spent", "umbel_epsilon_left")]


def test_epsilon_that_the_coordinator_books(tiny_root, tmp_path):
    flat = options(
        tiny_root,
        run__id="client",
        federation__rounds=2,
        privacy__unit="client",
        privacy__place="coordinator",
        privacy__sampler="full",
        privacy__epsilon=400.0,
        privacy__delta=1e-3,
    )
    run_in_memory(flat | {"run.directory": str(tmp_path)})
    _, samples = scraped(tmp_path)
    spent = of(samples, "umbel_epsilon_spent", run="client")
    assert 0 < spent <= 400
    assert of(samples, "umbel_epsilon_left", run="client") == pytest.approx(400 - spent)


def test_a_damaged_run_hides_no_other_and_old_ones_are_left_out(secure, tmp_path):
    import shutil

    shutil.copytree(secure, tmp_path / "runs")
    (tmp_path / "runs" / "broken").mkdir()
    (tmp_path / "runs" / "broken" / "config.toml").write_text("not toml at all =")
    _, samples = scraped(tmp_path / "runs")
    assert of(samples, "umbel_runs_unreadable") == 1
    assert of(samples, "umbel_rounds_total", run="of6") == 2
    _, samples = scraped(tmp_path / "runs", newest=1)
    assert not [1 for _, labels in samples if ("run", "of4") in labels]


def test_figures_follow_a_running_run(secure, tmp_path):
    import shutil

    shutil.copytree(secure / "of4", tmp_path / "of4")
    path = tmp_path / "of4" / "metrics.jsonl"
    whole = path.read_text().splitlines(keepends=True)
    collector = RunsCollector(str(tmp_path))

    def rounds():
        return {m.name: m for m in collector.collect()}["umbel_rounds"].samples[0].value

    path.write_text("".join(whole[:2]))
    assert rounds() == 1
    path.write_text("".join(whole))
    assert rounds() == 2


def test_an_empty_folder_has_no_runs(tmp_path):
    _, samples = scraped(tmp_path / "none")
    assert samples == {("umbel_runs_unreadable", frozenset()): 0}
