"""Options of a run from the command line, over those of the app's pyproject.toml."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from umbel.config import RunConfig
from umbel.errors import ConfigError


def find_app(start: Path) -> Path:
    """The folder of the Flower app: ``start``, or the nearest one above it, or the checkout of this package.

    Raises:
        ConfigError: none of them has a pyproject.toml with a Flower app.
    """
    checkout = Path(__file__).resolve().parents[2]
    for folder in (start, *start.parents, checkout):
        if "components" in _app_table(folder):
            return folder
    raise ConfigError(f"No Flower app stands in {start}: change to a checkout of umbel or give one with --app.")


def app_options(app: Path) -> dict[str, Any]:
    """Flat options of ``[tool.flwr.app.config]``.

    Raises:
        ConfigError: pyproject.toml is not TOML.
    """
    return flatten(_app_table(app).get("config", {}))


def _app_table(folder: Path) -> dict[str, Any]:
    path = folder / "pyproject.toml"
    try:
        table: Any = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read ({error}): mend the file.") from None
    for key in ("tool", "flwr", "app"):
        table = table.get(key, {}) if isinstance(table, dict) else {}
    return table if isinstance(table, dict) else {}


def flatten(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables to dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def parse_overrides(texts: Sequence[str]) -> dict[str, Any]:
    """Reads each ``-c``: one ``key=value``, several ``key=value key=value``, or a TOML file.

    Values are TOML (``8``, ``0.5``, ``true``, ``"text"``). Where an option is text, quotes may be left out, and then
    the value ends at the next space. A later option overrides an earlier one.

    Raises:
        ConfigError: not of that form, or a file that cannot be read.
    """
    result: dict[str, Any] = {}
    for text in texts:
        result.update(_read_file(Path(text)) if text.endswith(".toml") and "=" not in text else _read_pairs(text))
    return result


def _read_file(path: Path) -> dict[str, Any]:
    try:
        return flatten(tomllib.loads(path.expanduser().read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read ({error}): give a TOML file with options.") from None


def _read_pairs(text: str) -> dict[str, Any]:
    known = RunConfig().to_flat()
    result: dict[str, Any] = {}
    for pair in _split(text):
        key, sign, value = pair.partition("=")
        if not sign or not key.strip() or not value:
            raise ConfigError(f"{pair!r} is not an option: write -c key=value, for example -c federation.rounds=3.")
        result[key.strip()] = _value(value, wanted_text=isinstance(known.get(key.strip()), str))
    return result


def _split(text: str) -> list[str]:
    """At spaces outside quotes; the quotes stay."""
    pairs, quote = [""], ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        elif letter.isspace():
            pairs.append("")
            continue
        pairs[-1] += letter
    return [pair for pair in pairs if pair]


def _value(text: str, *, wanted_text: bool) -> Any:
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError):
        return text
    # An id such as 7 or 1e3 is text where text is expected.
    return text if wanted_text and not isinstance(value, str) else value
