"""Rules that turn names and shapes of a published checkpoint into those of a model here."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

How = Callable[[Sequence[Tensor], Sequence[torch.Size]], list[Tensor]]
"""From the source tensors and the shapes of the targets to the target tensors."""

_WILD = {"i": r"(?P<i>\d+)", "j": r"(?P<j>\d+)", "p": r"(?P<p>weight|bias)", "rest": r"(?P<rest>.+)"}


@dataclass(frozen=True)
class Rule:
    """One line of a key map.

    Attributes:
        sources: published names. ``{i}`` and ``{j}`` stand for numbers, ``{p}`` for weight or bias, ``{rest}`` for
            anything; what they stood for in the first name goes into all others.
        targets: names in the model; none skips the source.
        how: what is done to the tensors.
        why: of a skipped source, or of a target that is filled without one.
        beyond: the source may belong to a layer that the model leaves out; it is skipped then.
    """

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    how: How
    why: str = ""
    beyond: bool = False

    def match(self, name: str) -> dict[str, str] | None:
        """What the wild parts of the first source stand for, or None."""
        found = re.fullmatch(_pattern(self.sources[0]), name) if self.sources else None
        return None if found is None else found.groupdict()


KeyMap = tuple[Rule, ...]


def _pattern(template: str) -> str:
    pieces = re.split(r"\{(\w+)\}", template)
    return "".join(re.escape(piece) if n % 2 == 0 else _WILD[piece] for n, piece in enumerate(pieces))


def fill_in(template: str, found: Mapping[str, str]) -> str:
    """The template with its wild parts replaced."""
    return re.sub(r"\{(\w+)\}", lambda match: found[match.group(1)], template)


def move(source: str, target: str, *, beyond: bool = False) -> Rule:
    """The same tensor under another name."""
    return Rule((source,), (target,), _copy, beyond=beyond)


def reshape(source: str, target: str, *, beyond: bool = False) -> Rule:
    """The same numbers in the target's shape (a 1x1 convolution for a linear layer, a leading 1)."""
    return Rule((source,), (target,), _reshape, beyond=beyond)


def split(source: str, *targets: str, beyond: bool = False) -> Rule:
    """Rows cut into several tensors, as many each as the targets have."""
    return Rule((source,), targets, _split, beyond=beyond)


def join(sources: Sequence[str], target: str) -> Rule:
    """Rows of several tensors in one."""
    return Rule(tuple(sources), (target,), lambda tensors, _: [torch.cat(list(tensors))])


def skip(source: str, why: str) -> Rule:
    """A source that has no place here, and why that is right."""
    return Rule((source,), (), _copy, why)


def zeros(target: str, why: str) -> Rule:
    """A target that nothing published fills, and why zeros are right."""
    return Rule((), (target,), lambda _, shapes: [torch.zeros(shapes[0])], why)


def query_value_bias(sources: tuple[str, str], target: str) -> Rule:
    """BEiT's and EVA's biases: queries and values have one, keys have none."""
    return Rule(sources, (target,), lambda t, _: [torch.cat([t[0], torch.zeros_like(t[0]), t[1]])])


def class_position(source: str, target: str) -> Rule:
    """Positions of patches alone, where the model also has one of the CLS token: zeros in front."""
    return Rule((source,), (target,), lambda t, _: [torch.cat([torch.zeros_like(t[0][:, :1]), t[0]], dim=1)])


def interleaved_rotary(source: str, target: str, head: int) -> Rule:
    """Rows of a query or key projection in Meta's order (pairs side by side) to halves, for heads of ``head``."""

    def reorder(tensors: Sequence[Tensor], _: Sequence[torch.Size]) -> list[Tensor]:
        rows, width = tensors[0].shape
        pairs = tensors[0].reshape(rows // head, head // 2, 2, width)
        return [pairs.transpose(1, 2).reshape(rows, width)]

    return Rule((source,), (target,), reorder)


def under(rules: Sequence[Rule], source: str = "", target: str = "") -> KeyMap:
    """The rules with prefixes before all published names and all names here."""
    return tuple(
        replace(
            rule, sources=tuple(source + name for name in rule.sources), targets=tuple(target + n for n in rule.targets)
        )
        for rule in rules
    )


def _copy(tensors: Sequence[Tensor], shapes: Sequence[torch.Size]) -> list[Tensor]:
    return [tensors[0]]


def _reshape(tensors: Sequence[Tensor], shapes: Sequence[torch.Size]) -> list[Tensor]:
    wanted = shapes[0].numel()
    return [tensors[0].reshape(shapes[0]) if tensors[0].numel() == wanted else tensors[0]]


def _split(tensors: Sequence[Tensor], shapes: Sequence[torch.Size]) -> list[Tensor]:
    rows = [shape[0] for shape in shapes]
    if tensors[0].shape[0] != sum(rows):
        return [tensors[0]] * len(shapes)  # the shapes will be found wrong
    return [part.contiguous() for part in torch.split(tensors[0], rows)]
