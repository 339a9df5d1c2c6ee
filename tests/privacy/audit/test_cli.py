"""``umbel audit``: figures beside claims, and exit codes."""

import json

import pytest

from umbel.cli.main import main

FEW = ["--model", "tiny:llava", "--canaries", "400"]


def test_a_sound_engine(capsys):
    assert main(["audit", *FEW, "--json"]) == 0
    found = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert found["sensitivity"]["ratio"] == pytest.approx(1.0, abs=1e-5)
    assert 0 <= found["run"]["epsilon"] < found["run"]["claimed"]
    assert found["run"]["claimed"] == pytest.approx(4.38, abs=0.01)


def test_a_claim_that_is_too_low_fails(capsys):
    assert main(["audit", *FEW, "--claim", "0.1"]) == 55
    printed = capsys.readouterr()
    assert "claimed 0.10" in printed.out
    assert "release nothing" in printed.err


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (["--engine", "opacus", "-c", 'lora.targets="vision"'], 50, "book-keeping or loop"),
        (["--engine", "magic"], 50, "unknown"),
        (["--delta", "0"], 50, "Delta"),
        (["--sampling-rate", "2"], 50, "no DP-SGD"),
        (["--canaries", "1000000"], 50, "do not fit"),
        (["--model", "tiny:mystery"], 30, "no tiny family"),
    ],
)
def test_refusals(arguments, code, word, capsys):
    assert main(["audit", *FEW, *arguments]) == code
    assert word in capsys.readouterr().err


def test_the_configured_model_and_task(tmp_path, capsys):
    """A saved checkpoint and the built-in task, through the loader, the quantizer and the collator."""
    from mllm.testing import tiny_composed

    folder = tiny_composed(encoder="siglip").save(tmp_path / "model")
    options = ["-c", "model.quantization=none", "-c", 'lora.targets="language,vision"', "--examples", "3"]
    assert main(["audit", "--model", str(folder), "--canaries", "400", *options, "--json"]) == 0
    found = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert found["sensitivity"]["ratio"] == pytest.approx(1.0, abs=1e-5)
    assert len(found["sensitivity"]["moved"]) == 3


def test_canary_clients_through_the_coordinator(capsys):
    assert main(["audit", "--kind", "clients", "--canaries", "1000", "--json"]) == 0
    found = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert "sensitivity" not in found
    assert 1.5 < found["run"]["epsilon"] < found["run"]["claimed"] == pytest.approx(4.38, abs=0.01)


def test_half_the_noise_at_the_coordinator_is_caught(monkeypatch, capsys):
    from coordinator import central_dp

    add = central_dp.add_gaussian_
    monkeypatch.setattr(central_dp, "add_gaussian_", lambda vector, std: add(vector, std / 2))
    assert main(["audit", "--kind", "clients", "--canaries", "2000"]) == 55
    assert "release nothing" in capsys.readouterr().err


EXAMPLES = ["--kind", "examples", "--canaries", "60", "--examples", "8", "--steps", "6"]
TRAINING = ["-c", "model.quantization=none", "-c", "train.learning-rate=0.02", "-c", "strategy.name=fedit"]
TINY_PLAN = ["-c", "lora.rank=32", "-c", "privacy.engine=bookkeeping", "--noise-multiplier", "0.05"]


@pytest.fixture
def memorising(tmp_path):
    """A model with room to memorise: wide for its data, random weights."""
    from mllm.testing import tiny_composed

    return ["--model", str(tiny_composed(encoder="siglip").save(tmp_path / "model"))]


def test_canary_examples_through_the_trainer(memorising, capsys):
    assert main(["audit", *EXAMPLES, *memorising, *TRAINING, *TINY_PLAN, "--json"]) == 0
    found = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert found["run"]["total"] == 60
    assert found["run"]["epsilon"] <= found["run"]["claimed"]


def test_noise_that_training_forgets_is_caught(memorising, monkeypatch, capsys):
    from client import budget

    monkeypatch.setattr(budget, "add_gaussian_", lambda vector, std: None)
    claimed = ["--claim", "0.05", *TINY_PLAN[:-2]]
    assert (
        main(
            [
                "audit",
                *EXAMPLES[:2],
                "--canaries",
                "200",
                *EXAMPLES[4:6],
                "--steps",
                "120",
                *memorising,
                *TRAINING,
                *claimed,
            ]
        )
        == 55
    )
    assert "release nothing" in capsys.readouterr().err


def test_canary_examples_need_a_task(capsys):
    assert main(["audit", "--kind", "examples", "--model", "tiny:llava"]) == 30
    assert "leave out --model" in capsys.readouterr().err
