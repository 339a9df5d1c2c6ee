import pytest

from umbel.cli.options import app_options, find_app, flatten, parse_overrides
from umbel.errors import ConfigError


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ([], {}),
        (["federation.rounds=3"], {"federation.rounds": 3}),
        (["federation.rounds=3 train.learning-rate=1e-3"], {"federation.rounds": 3, "train.learning-rate": 1e-3}),
        (["federation.rounds=3", "federation.rounds=4"], {"federation.rounds": 4}),
        (["model.name=demo"], {"model.name": "demo"}),
        (['model.name="a b"'], {"model.name": "a b"}),
        (["model.name='a b' lora.rslora=true"], {"model.name": "a b", "lora.rslora": True}),
        (["model.name=/data/base=1"], {"model.name": "/data/base=1"}),
        (["run.id=7"], {"run.id": "7"}),  # text where text is expected
        (["run.id=1e3"], {"run.id": "1e3"}),
        (["lora.targets=language,vision"], {"lora.targets": "language,vision"}),
        (["no.such=word"], {"no.such": "word"}),  # RunConfig refuses it, with a suggestion
    ],
)
def test_pairs(texts, expected):
    assert parse_overrides(texts) == expected


@pytest.mark.parametrize("text", ["rounds", "=3", "federation.rounds=", "federation.rounds = 3"])
def test_what_is_no_pair_is_refused(text):
    with pytest.raises(ConfigError, match="is not an option: write -c key=value"):
        parse_overrides([text])


def test_a_toml_file_and_a_pair(tmp_path):
    path = tmp_path / "options.toml"
    path.write_text('"federation.clients" = 5\n[federation]\nrounds = 3\n[model]\nname = "x y"\n')
    found = parse_overrides([str(path), "federation.rounds=9"])
    assert found == {"federation.clients": 5, "federation.rounds": 9, "model.name": "x y"}


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        parse_overrides([str(tmp_path / "absent.toml")])
    (tmp_path / "bad.toml").write_text("[")
    with pytest.raises(ConfigError, match="cannot be read"):
        parse_overrides([str(tmp_path / "bad.toml")])


def test_flatten():
    assert flatten({"a": {"b": 1, "c": {"d": 2}}, "e": 3}) == {"a.b": 1, "a.c.d": 2, "e": 3}


def test_the_nearest_app_above_is_found(tmp_path):
    text = '[tool.flwr.app.components]\nserverapp = "x:app"\n[tool.flwr.app.config.run]\nseed = 5\n'
    (tmp_path / "pyproject.toml").write_text(text)
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    (tmp_path / "a" / "pyproject.toml").write_text('[project]\nname = "other"\n')
    assert find_app(inner) == tmp_path
    assert app_options(tmp_path) == {"run.seed": 5}


def test_a_pyproject_that_is_not_toml_is_refused(tmp_path):
    (tmp_path / "pyproject.toml").write_text("[")
    with pytest.raises(ConfigError, match=r"pyproject\.toml cannot be read"):
        find_app(tmp_path)


def test_no_app_anywhere(tmp_path, monkeypatch):
    monkeypatch.setattr("umbel.cli.options.__file__", str(tmp_path / "x" / "y" / "z" / "options.py"))
    with pytest.raises(ConfigError, match="No Flower app stands in"):
        find_app(tmp_path)
