import re
import tomllib

from coordinator.model_card import render_model_card, write_model_card
from coordinator.run_folder import read_config
from coordinator.tracking import Metrics, read_metrics
from tests.coordinator.sample_run import start_line, write_run
from umbel.config import RunConfig


def front_matter(card):
    import yaml

    return yaml.safe_load(re.match(r"---\n(.*?)---\n", card, re.DOTALL).group(1))


def test_the_card_holds_what_a_reader_needs(tmp_path):
    folder = write_run(tmp_path)
    path = write_model_card(folder)
    assert path == folder / "adapter" / "README.md"
    card = path.read_text()
    head = front_matter(card)
    assert head["base_model"] == "demo"
    assert head["library_name"] == "peft"
    assert {"lora", "federated-learning", "fedit"} <= set(head["tags"])
    assert "differential-privacy" not in head["tags"]
    for expected in ("| private | 200 | 72.0% | 95.0% | 96.0% | +23.0 |", "| what colour | 50 | 0.0% | 86.0% |",
                     "20 clients in 3 federated rounds", "PeftModel.from_pretrained", "torch 2.13.0",
                     "No differential privacy", "dirichlet (alpha 0.5)"):  # fmt: skip
        assert expected in card, expected


def test_the_configuration_in_the_card_is_the_runs_without_its_machine(tmp_path):
    folder = write_run(tmp_path, **{"lora.rank": 3})
    card = write_model_card(folder).read_text()
    table = tomllib.loads(re.search(r"```toml\n(.*?)```", card, re.DOTALL).group(1))
    expected = read_config(folder).to_nested()
    del expected["run"]["directory"]
    assert table == expected
    assert str(tmp_path) not in card


def test_privacy_is_stated(tmp_path):
    privacy = {"epsilon": 7.5, "delta": 1e-5, "statement": "Adding or removing one example changes little."}
    folder = write_run(
        tmp_path,
        start=start_line(privacy=privacy, secagg={"threshold": 14, "mode": "complete graph"}),
        **{"privacy.unit": "example", "secagg.enabled": True},
    )
    card = render_model_card("x", read_config(folder), read_metrics(folder / "metrics.jsonl"))
    assert "epsilon 7.5 at delta 1e-05. Adding or removing one example changes little." in card
    assert "Secure aggregation: complete graph, threshold 14." in card
    assert {"differential-privacy", "secure-aggregation"} <= set(front_matter(card)["tags"])


def test_a_name_cannot_break_the_header():
    name = 'odd: "name"\n---\ntags: [evil]'
    head = front_matter(render_model_card("x", RunConfig.from_flat({"model.name": name}), Metrics()))
    assert head["base_model"] == name
    assert "evil" not in head["tags"]
