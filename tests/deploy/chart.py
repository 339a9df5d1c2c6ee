"""The part of Helm's templates that our chart uses, so that it can be rendered and checked where Helm is not."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

_TOKEN = re.compile(r"(\{\{-?.*?-?\}\})", re.S)


def render(chart: Path, release: str = "fed", values: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    """Every object of every template, with ``values`` over the chart's own."""
    merged = _merge(yaml.safe_load((chart / "values.yaml").read_text()), values or {})
    scope = {"Values": merged, "Release": {"Name": release}}
    found = []
    for path in sorted((chart / "templates").glob("*.yaml")):
        text = _expand(_tokens(path.read_text()), scope, chart)
        found += [body for body in yaml.safe_load_all(text) if body]
    return found


def _merge(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    return a | {k: _merge(a[k], v) if isinstance(v, dict) and isinstance(a.get(k), dict) else v for k, v in b.items()}


def _tokens(text: str) -> list[str]:
    parts: list[str] = []
    for part in _TOKEN.split(text):
        if part.startswith("{{-"):
            parts[-1] = parts[-1].rstrip(" \t\n") if parts else ""
        parts.append(part)
    return parts


def _expand(parts: list[str], scope: dict[str, Any], chart: Path) -> str:
    out, stack = "", []
    position = 0
    while position < len(parts):
        part = parts[position]
        if not part.startswith("{{"):
            out += part
            position += 1
            continue
        word = part.strip("{}-").strip()
        if word.startswith(("if ", "range ")):
            end = _matching_end(parts, position)
            body = parts[position + 1 : end]
            if word.startswith("if "):
                out += _expand(body, scope, chart) if _value(word[3:], scope, chart) else ""
            else:
                names, _, expression = word[6:].partition(":=")
                key, value = (name.strip() for name in names.split(","))
                for k, v in sorted(_value(expression.strip(), scope, chart).items()):
                    out += _expand(body, scope | {key: k, value: v}, chart)
            position = end + 1
            continue
        out += str(_value(word, scope, chart))
        position += 1
    assert not stack
    return out


def _matching_end(parts: list[str], start: int) -> int:
    depth = 0
    for position in range(start, len(parts)):
        word = parts[position].strip("{}-").strip() if parts[position].startswith("{{") else ""
        depth += word.startswith(("if ", "range ")) - (word == "end")
        if depth == 0:
            return position
    raise AssertionError("a block of the template has no end")


def _value(expression: str, scope: dict[str, Any], chart: Path) -> Any:
    first, *pipes = (piece.strip() for piece in expression.split("|"))
    value: Any
    if first.startswith(".Files.Get "):
        value = (chart / json.loads(first.removeprefix(".Files.Get "))).read_text()
    elif first.startswith("$"):
        value = scope[first]
    else:
        assert re.fullmatch(r"(\.[A-Za-z]+)+", first), f"{first} is more than this renderer knows"
        value = scope
        for name in first.strip(".").split("."):
            assert name in value, f"{first} is not in values.yaml"
            value = value[name]
    for pipe in pipes:
        if pipe == "quote":
            value = json.dumps(str(value))
        else:
            name, count = pipe.split()
            assert name == "indent", f"{pipe} is more than this renderer knows"
            value = "\n".join(" " * int(count) + line for line in str(value).splitlines())
    return value
