import re
import tomllib
from pathlib import Path

import pytest

from umbel.config import RunConfig
from umbel.errors import ConfigError

ROOT = Path(__file__).parents[2]


def flat(table, prefix=""):
    out = {}
    for key, value in table.items():
        out.update(flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value})
    return out


def test_pyproject_holds_exactly_the_defaults():
    table = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    assert flat(table) == RunConfig().to_flat()


def test_flat_and_nested_are_inverse():
    config = RunConfig.from_flat({"train.batch-size": 3, "task.alpha": 2})
    assert config.train.batch_size == 3
    assert config.task.alpha == 2.0
    assert RunConfig.from_flat(config.to_flat()) == config
    assert RunConfig.from_nested(config.to_nested()) == config


@pytest.mark.parametrize(
    ("flat", "sentence"),
    [
        ({"train.batchsize": 3}, "did you mean 'train.batch-size'"),
        ({"nonsense": 3}, "is unknown"),
        ({"train": 3}, "is unknown"),
        ({"train.batch-size": "many"}, "train.batch-size"),
        ({"train.batch-size": 2.5}, "train.batch-size"),
        ({"train.batch-size": True}, "train.batch-size"),
        ({"federation.clients": 0}, "federation.clients"),
        ({"lora.alpha": float("nan")}, "lora.alpha"),
        ({"federation.cohort": "fixed", "federation.cohort-size": 21}, "larger than the population"),
        ({"federation.minimum": 21}, "no round could ever count"),
        ({"task.partition": "random"}, "task.partition"),
        ({"run.id": "../x"}, "run.id"),
    ],
)
def test_bad_options_get_one_sentence(flat, sentence):
    with pytest.raises(ConfigError) as caught:
        RunConfig.from_flat(flat)
    message = str(caught.value)
    assert sentence in message
    assert "\n" not in message
    assert re.search(r"[.?]$", message)


def test_every_option_is_explained_in_pyproject():
    text = (ROOT / "pyproject.toml").read_text()
    block = text[text.index("# >>> options of a run") : text.index("# <<< options of a run")]
    bare = [line for line in block.splitlines() if re.match(r"^[a-z-]+ = ", line) and "#" not in line]
    assert bare == []
