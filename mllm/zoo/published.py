"""Loading a published checkpoint into a model by its key map: whole, or not at all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mllm.zoo.keys.rules import KeyMap, Rule, fill_in
from umbel.errors import ModelError

_TWICE = "given twice: the checkpoint's own comes first"
_BEYOND = "a layer behind the hidden state that is read"


@dataclass(frozen=True, slots=True)
class KeyReport:
    """What became of every name, on both sides.

    Attributes:
        loaded: tensors of the model that were filled.
        reshaped: of those, what was split, joined or reshaped: published name to name here.
        skipped: published names that have no place here, and why that is right.
        missing: tensors of the model that nothing filled.
        unexpected: published names that no rule knows.
        misshapen: "name: shape found, shape expected".
    """

    loaded: int
    reshaped: tuple[str, ...]
    skipped: dict[str, str]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshapen: tuple[str, ...]

    @property
    def whole(self) -> bool:
        """Whether nothing is missing, unexpected or misshapen."""
        return not (self.missing or self.unexpected or self.misshapen)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**asdict(self), "whole": self.whole}

    def check(self, name: str) -> None:
        """Refuses a partial load.

        Raises:
            ModelError: something is missing, unexpected or misshapen; the first of each is named.
        """
        if self.whole:
            return
        parts = [
            f"{len(names)} {what} (first {names[0]})"
            for what, names in (
                ("missing", self.missing),
                ("unexpected", self.unexpected),
                ("misshapen", self.misshapen),
            )
            if names
        ]
        raise ModelError(
            f"{name} is not the published layout that is known here, keys: {', '.join(parts)}; nothing was loaded: "
            "check that the checkpoint belongs to this system and that the towers that are published apart were given."
        )


class Published:
    """Tensors of one or several safetensors directories, read one at a time.

    Args:
        folders: directories, each with a prefix that is put before its names ("" for none).

    Raises:
        ModelError: a directory holds no safetensors, a file cannot be read, or a name comes twice.
    """

    def __init__(self, folders: Iterable[tuple[str, Path]]) -> None:
        self._files: dict[str, tuple[Path, str]] = {}
        for prefix, folder in folders:
            files = sorted(folder.glob("*.safetensors"))
            if not files:
                pickled = " (pickled weights are never loaded: convert them first)" if _pickled(folder) else ""
                raise ModelError(f"{folder} holds no safetensors weights{pickled}: give a directory that does.")
            for file in files:
                for name in self._names(file):
                    if prefix + name in self._files:
                        raise ModelError(
                            f"{prefix + name} stands in {file} and in another file: give each checkpoint once."
                        )
                    self._files[prefix + name] = (file, name)

    def __iter__(self) -> Any:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, name: str) -> Tensor:
        file, inner = self._files[name]
        with safe_open(str(file), framework="pt") as tensors:
            found: Tensor = tensors.get_tensor(inner)
        return found

    @staticmethod
    def _names(file: Path) -> list[str]:
        try:
            with safe_open(str(file), framework="pt") as tensors:
                return list(tensors.keys())
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{file} cannot be read as safetensors ({error}): download it again.") from None


def load_published(model: Any, keys: KeyMap, tensors: Mapping[str, Tensor] | Published) -> KeyReport:
    """Fills ``model`` with published tensors, in the model's own dtypes.

    Args:
        model: as the configuration builds it; its values are overwritten, in part even when the report is not whole.
        keys: the key map.
        tensors: by published name.

    Returns:
        The report; call :meth:`KeyReport.check` before the model is used.
    """
    wanted: dict[str, Tensor] = dict(model.state_dict(keep_vars=True))
    filled: set[str] = set()
    reshaped: list[str] = []
    skipped: dict[str, str] = {}
    misshapen: list[str] = []
    chosen, unexpected = _choose(keys, tensors, wanted, skipped)
    for name, (rule, found) in chosen.items():
        targets = [fill_in(target, found) for target in rule.targets]
        if filled.issuperset(targets):
            skipped[name] = _TWICE
            continue
        values = [tensors[fill_in(source, found)] for source in rule.sources]
        _put(name, rule, values, targets, wanted, reshaped, misshapen)
        filled.update(targets)
    for rule in keys:
        if not rule.sources and rule.targets[0] in wanted and rule.targets[0] not in filled:
            _put(rule.why, rule, [], list(rule.targets), wanted, reshaped, misshapen)
            filled.update(rule.targets)
    present = {id(wanted[name]) for name in filled}
    missing = tuple(name for name, value in wanted.items() if name not in filled and id(value) not in present)
    return KeyReport(len(filled), tuple(reshaped), skipped, missing, tuple(unexpected), tuple(misshapen))


def _choose(
    keys: KeyMap, names: Iterable[str], wanted: Mapping[str, Tensor], skipped: dict[str, str]
) -> tuple[dict[str, tuple[Rule, dict[str, str]]], list[str]]:
    """The rule of each leading name in the rules' order, and the names that no rule knows."""
    found: list[tuple[int, str, dict[str, str]]] = []
    lost: list[str] = []
    used: set[str] = set()
    available = set(names)
    for name in available:
        beyond = False
        for index, rule in enumerate(keys):
            match = rule.match(name)
            if match is None:
                continue
            if not rule.targets:
                skipped[name] = rule.why
                break
            if all(fill_in(target, match) in wanted for target in rule.targets):
                others = [fill_in(source, match) for source in rule.sources[1:]]
                if available.issuperset(others):
                    used.update(others)
                    found.append((index, name, match))
                    break
            beyond = beyond or rule.beyond
        else:
            if beyond:
                skipped[name] = _BEYOND
            else:
                lost.append(name)
    ordered = {name: (keys[index], match) for index, name, match in sorted(found, key=lambda entry: entry[:2])}
    return ordered, sorted(set(lost) - used)


def _put(
    name: str,
    rule: Rule,
    values: list[Tensor],
    targets: list[str],
    wanted: Mapping[str, Tensor],
    reshaped: list[str],
    misshapen: list[str],
) -> None:
    made = rule.how(values, [wanted[target].shape for target in targets])
    for target, value in zip(targets, made, strict=True):
        place = wanted[target]
        if value.shape != place.shape:
            misshapen.append(f"{name}: {tuple(value.shape)} found, {tuple(place.shape)} expected for {target}")
            continue
        if len(values) != 1 or value.shape != values[0].shape or len(targets) != 1:
            reshaped.append(f"{name} -> {target}")
        with torch.no_grad():
            place.copy_(value.to(place.dtype))


def _pickled(folder: Path) -> bool:
    return any(folder.glob("*.bin")) or any(folder.glob("*.pt")) or any(folder.glob("*.pth"))
