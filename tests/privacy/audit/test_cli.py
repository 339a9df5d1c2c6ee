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
