"""Clients without images: they train what they can, and what they lack does not drag the average."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.federated import make_folder, options, run_in_memory
from umbel.errors import StrategyError

BLIND = (0, 1)


@pytest.fixture
def flat(tiny_root, tmp_path):
    """Sites h0 and h1 have text alone; the data's owners are the clients."""
    folder = make_folder(tmp_path / "data")
    lines = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    for line in lines:
        if line["site"] in {f"h{number}" for number in BLIND}:
            line["image"] = None
            line["question"] = f"how do you spell {line['answer']} ?"
    (folder / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    def make(**changes):
        base = options(tiny_root, task__data=str(folder), task__partition="natural", strategy__name="ffa-lora")
        base |= {"run.directory": str(tmp_path / "runs"), "lora.targets": "language,projector"}
        base |= {"train.learning-rate": 0.05, "federation.rounds": 1}
        return base | {k.replace("__", ".").replace("_", "-"): v for k, v in changes.items()}

    return make


def factors(path):
    """The B factors by part; with A frozen they are what was learned."""
    arrays = load_file(path / "adapter" / "adapter_model.safetensors")
    found = {"projector": {}, "language": {}}
    for name, array in arrays.items():
        if "lora_B" in name:
            found["projector" if "projector" in name else "language"][name] = array
    return found


def largest(a, b):
    return max(np.abs(a[name] - b[name]).max() for name in a)


def without(clients):
    return lambda node, message: "crash" if message.metadata.message_type == "train" and node in clients else None


@pytest.mark.parametrize("secure", [False, True])
def test_each_part_is_the_average_of_those_who_trained_it(flat, secure, tmp_path, monkeypatch):
    from umbel.machine import machine_secret

    monkeypatch.setenv("UMBEL_HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    machine_secret.cache_clear()
    mixed = factors(run_in_memory(flat(run__id="a", strategy__parts=True, secagg__enabled=secure, secagg__clip=5.0)))
    sighted = factors(run_in_memory(flat(run__id="b"), fault=without(BLIND)))
    everybody = factors(run_in_memory(flat(run__id="c")))
    machine_secret.cache_clear()
    exact = 1e-3 if secure else 1e-6
    assert max(np.abs(b).max() for b in sighted["projector"].values()) > 0.01
    assert largest(mixed["projector"], sighted["projector"]) < exact
    assert largest(mixed["language"], everybody["language"]) < exact
    # A plain mean halves what the two clients with images learned of the projector.
    halved = {name: array / 2 for name, array in sighted["projector"].items()}
    assert largest(everybody["projector"], halved) < 1e-6


def test_a_part_that_nobody_trained_stays_as_it_was(flat):
    seeing = tuple(sorted({0, 1, 2, 3} - set(BLIND)))
    blind = factors(run_in_memory(flat(strategy__parts=True), fault=without(seeing)))
    assert max(np.abs(b).max() for b in blind["projector"].values()) == 0
    assert max(np.abs(b).max() for b in blind["language"].values()) > 0.01


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"strategy__name": "flexlora"}, "average parts one by one"),
        ({"strategy__name": "fedask"}, "average parts one by one"),
        ({"privacy__unit": "example"}, "exact zero"),
        ({"train__weight_decay": 0.1}, "exact zero"),
    ],
)
def test_part_weights_are_refused_where_a_zero_says_nothing(flat, changes, words):
    with pytest.raises(StrategyError, match=words):
        run_in_memory(flat(strategy__parts=True, **changes))
