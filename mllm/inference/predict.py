"""Answers to a whole file of questions: resumable, and never half there under its own name."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from mllm.inference.answer import Answerer
from mllm.tasks.example import Example
from mllm.tasks.folder import parse
from umbel.config.task import FRAMES
from umbel.errors import DataError, RunError
from umbel.files import fsync_folder


@dataclass(frozen=True)
class Questions:
    """The questions of a file, in order.

    Attributes:
        path: of the file; images are named relative to its folder.
        examples: one a line; the answer is "?" where the line has none.
        numbers: of their lines, from 1.
        fingerprint: SHA-256 over the file.
    """

    path: Path
    examples: tuple[Example, ...]
    numbers: tuple[int, ...]
    fingerprint: str

    @classmethod
    def read(cls, path: Path, frames: int = FRAMES) -> Questions:
        """Reads a JSONL file; images are not opened. ``frames`` are taken of a video at most.

        Raises:
            DataError: the file cannot be read, has no line, or a line is no question; the message names the line.
        """
        try:
            data = path.expanduser().read_bytes()
        except OSError as error:
            raise DataError(f"{path} cannot be read ({error.strerror}): give a JSONL file of questions.") from None
        root = path.expanduser().resolve().parent
        found = [(n, line) for n, line in enumerate(data.splitlines(), 1) if line.strip()]
        if not found:
            raise DataError(f"{path} has no question: write one JSON object with image and question a line.")
        examples = tuple(parse(root, path.name, n, _with_answer(line), frames) for n, line in found)
        return cls(path, examples, tuple(n for n, _ in found), hashlib.sha256(data).hexdigest())

    def __len__(self) -> int:
        return len(self.examples)


def predict_file(
    questions: Questions,
    target: Path,
    answerer: Answerer,
    *,
    identity: str,
    batch_size: int,
    progress: Callable[[int], None] = lambda done: None,
) -> int:
    """Answers every question into ``target``, one JSON object a line: line, question, answer, probability, complete.

    Answers go to ``target`` with ``.partial`` behind its name, synced after each batch, and are renamed when all are
    there. A call with the same questions and identity goes on after the last whole line; a torn one is asked again.

    Args:
        questions: to answer.
        target: must not exist.
        answerer: answers.
        identity: what the answers depend on beside the questions: model, adapter, options.
        batch_size: questions in one forward pass.
        progress: is told how many are answered.

    Returns:
        How many answers the file holds.

    Raises:
        RunError: ``target`` exists or cannot be written, another process writes it, or what is there was made from
            other questions or by another model.
        DataError: an image cannot be read; what was answered stays.
    """
    target = target.expanduser().absolute()
    if target.exists():
        raise RunError(f"{target} exists already: choose another name or remove it.")
    partial = target.with_name(target.name + ".partial")
    head = {"umbel": "predictions", "of": hashlib.sha256(f"{questions.fingerprint} {identity}".encode()).hexdigest()}
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(partial.with_name(partial.name + ".lock"), timeout=0):
            done = _resume(partial, head)
            with partial.open("ab") as stream:
                progress(done)
                while done < len(questions):
                    chunk = questions.examples[done : done + batch_size]
                    answers = answerer.answer(chunk)
                    for number, example, answer in zip(questions.numbers[done:], chunk, answers, strict=False):
                        line = {
                            "line": number,
                            "question": example.question,
                            "answer": answer.text,
                            "probability": round(answer.probability, 6),
                            "complete": answer.complete,
                        }
                        stream.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
                    stream.flush()
                    os.fsync(stream.fileno())
                    done += len(chunk)
                    progress(done)
            _finish(partial, target)
            partial.with_name(partial.name + ".lock").unlink(missing_ok=True)
    except Timeout:
        raise RunError(f"Another process writes {target}: wait for it or choose another name.") from None
    except OSError as error:
        raise RunError(
            f"{target} cannot be written ({error.strerror}): free some space or choose a folder that you may write to."
        ) from None
    return done


def _resume(partial: Path, head: dict[str, str]) -> int:
    """How many whole answers stand in ``partial``, which is cut after them; it is begun when it is not there."""
    first = json.dumps(head).encode() + b"\n"
    data = partial.read_bytes() if partial.exists() else b""
    if b"\n" not in data:  # also where the very first write was cut short
        partial.write_bytes(first)
        return 0
    whole = data[: data.rfind(b"\n") + 1]
    if not whole.startswith(first):
        raise RunError(
            f"{partial} was made from other questions or by another model: remove it or choose another name."
        )
    if len(whole) < len(data):
        with partial.open("r+b") as stream:
            stream.truncate(len(whole))
    return whole.count(b"\n") - 1


def _finish(partial: Path, target: Path) -> None:
    """Renames the answers, without their first line, to ``target``."""
    made = partial.with_name(partial.name + ".whole")
    made.write_bytes(partial.read_bytes().partition(b"\n")[2])
    with made.open("rb") as stream:
        os.fsync(stream.fileno())
    os.replace(made, target)
    fsync_folder(target.parent)
    partial.unlink()


def _with_answer(line: bytes) -> bytes:
    try:
        body: Any = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return line  # refused by the parser, with the line's number
    return json.dumps({"answer": "?", **body}).encode() if isinstance(body, dict) else line
