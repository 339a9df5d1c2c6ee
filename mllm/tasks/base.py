"""Task: which examples the clients hold, how they are divided, and what is evaluated."""

from __future__ import annotations

import hashlib
import operator
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np
import numpy.typing as npt

from mllm.tasks import partition
from mllm.tasks.example import Example, question_type
from umbel.config import TaskConfig
from umbel.errors import DataError

Indices = npt.NDArray[np.int64]


class ExampleSet(Sequence[Example], ABC):
    """A sequence of examples that are made when asked for."""

    @abstractmethod
    def _get(self, index: int) -> Example:
        """The example at ``index``, 0 <= index < len(self)."""

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> ExampleSet: ...
    def __getitem__(self, index: int | slice) -> Example | ExampleSet:
        if isinstance(index, slice):
            return self.subset(range(*index.indices(len(self))))
        position = operator.index(index)
        if position < 0:
            position += len(self)
        if not 0 <= position < len(self):
            raise IndexError(index)  # what the sequence protocol asks for, so that iteration ends
        return self._get(position)

    def __iter__(self) -> Iterator[Example]:
        return (self._get(i) for i in range(len(self)))

    def subset(self, indices: Iterable[int]) -> ExampleSet:
        """A lazy view of the examples at ``indices``, in that order; repeats are allowed.

        Raises:
            DataError: an index is outside 0 .. len(self) - 1.
        """
        chosen = np.fromiter((operator.index(i) for i in indices), dtype=np.int64)
        if chosen.size and (chosen.min() < 0 or chosen.max() >= len(self)):
            raise DataError(
                f"A subset asks for an example outside 0 to {len(self) - 1}: use the indices that the partition gave."
            )
        return _Subset(self, chosen)


class _Subset(ExampleSet):
    def __init__(self, parent: ExampleSet, indices: Indices) -> None:
        self._parent, self._indices = parent, indices

    def __len__(self) -> int:
        return len(self._indices)

    def _get(self, index: int) -> Example:
        return self._parent._get(int(self._indices[index]))


class MemorySet(ExampleSet):
    """Examples that already stand in memory (their images do not)."""

    def __init__(self, examples: Iterable[Example]) -> None:
        self._examples = tuple(examples)

    def __len__(self) -> int:
        return len(self._examples)

    def _get(self, index: int) -> Example:
        return self._examples[index]


class Task:
    """A private training pool, evaluation sets, and the division of the pool among clients.

    Attributes:
        name: of the task.
        train: the private pool that the clients hold between them.
        evaluation: sets by name, for the coordinator.
        headline: the key of ``evaluation`` that the report puts first.
        pretrain: public training examples that a base may have seen, or None.
        fingerprint: SHA-256 in hexadecimal over what the task was read from.
        skipped: one sentence for every line that was left out.
    """

    def __init__(
        self,
        *,
        name: str,
        config: TaskConfig,
        train: ExampleSet,
        evaluation: dict[str, ExampleSet],
        headline: str,
        fingerprint: str,
        pretrain: ExampleSet | None = None,
        skipped: Iterable[str] = (),
    ) -> None:
        self.name, self.config = name, config
        self.train, self.evaluation, self.headline = train, evaluation, headline
        self.pretrain, self.fingerprint = pretrain, fingerprint
        self.skipped: list[str] = list(skipped)
        self._partitions: dict[tuple[int, int], list[Indices]] = {}

    def question_type(self, example: Example) -> str:
        """The group of a question for accuracy by type."""
        return question_type(example)

    def partition(self, clients: int, seed: int) -> list[Indices]:
        """Divides the pool: one ascending array of indices into ``train`` for each client.

        Every example is in exactly one part, every part has at least ``config.minimum`` examples, and the
        same arguments give the same parts. Except under ``natural``, all questions that share an image
        (directly or through a chain of shared images) lie at one client.

        Raises:
            DataError: the pool cannot be divided so.
        """
        return [part.copy() for part in self._parts(clients, seed)]

    def _parts(self, clients: int, seed: int) -> list[Indices]:
        key = (clients, seed)
        if key not in self._partitions:
            self._partitions[key] = self._divide(clients, seed)
        return self._partitions[key]

    def client(self, index: int, clients: int, seed: int) -> ExampleSet:
        """What client ``index`` of ``clients`` holds.

        Raises:
            DataError: there is no such client, or the pool cannot be divided so.
        """
        if not 0 <= index < clients:
            raise DataError(f"Client {index} of {clients} does not exist: clients are numbered 0 to {clients - 1}.")
        return self.train.subset(self._parts(clients, seed)[index])

    def label(self, examples: Sequence[Example]) -> str:
        """The class of one image's examples that the Dirichlet partition skews: their most frequent answer."""
        return _most_frequent(example.answer for example in examples)

    def _divide(self, clients: int, seed: int) -> list[Indices]:
        config = self.config
        if config.partition == "natural":
            return partition.natural(self._owners(), clients, minimum=config.minimum)
        groups = partition.group_by_image([[str(s.path) for s in example.images] for example in self.train])
        options = {"clients": clients, "seed": seed, "minimum": config.minimum}
        if config.partition == "iid":
            return partition.iid(groups, **options)
        members: list[list[Example]] = [[] for _ in range(int(groups.max(initial=-1)) + 1)]
        for group, example in zip(groups, self.train, strict=True):
            members[group].append(example)
        if config.partition == "dirichlet":
            labels = [self.label(examples) for examples in members]
            return partition.dirichlet(groups, labels, alpha=config.alpha, **options)
        types = [_most_frequent(self.question_type(e) for e in examples) for examples in members]
        return partition.by_label(groups, types, **options)

    def _owners(self) -> list[str]:
        owners = []
        for number, example in enumerate(self.train):
            owner = example.meta.get(self.config.key)
            if owner is None:
                raise DataError(
                    f"Example {number} of task {self.name!r} has no field {self.config.key!r} that names its owner: "
                    f"set task.key to one of {sorted(example.meta)} or choose another partition."
                )
            owners.append(owner)
        return owners


def _most_frequent(values: Iterable[str]) -> str:
    # Ties go to the first in the alphabet, so that the order of lines does not matter.
    return min(Counter(values).items(), key=lambda item: (-item[1], item[0]))[0]


def fingerprint_of(parts: Iterable[bytes]) -> str:
    """SHA-256 in hexadecimal over length-prefixed parts (so that no two lists of parts collide by joining)."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.hexdigest()
