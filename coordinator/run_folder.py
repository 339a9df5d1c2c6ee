"""RunFolder: the folder ``runs/<id>/`` of one run, created, resumed and locked.

::

    runs/<id>/
    ├── config.toml       every option of the run
    ├── metrics.jsonl     one line an event (coordinator.tracking)
    ├── checkpoint/       state after the last finished round
    ├── adapter/          what PEFT loads, with its model card
    ├── report.html
    ├── error.json        only after a failure: the sentence and the exit code
    └── .lock             held by the process that runs
"""

from __future__ import annotations

import json
import os
import tempfile
import tomllib
from pathlib import Path
from types import TracebackType
from typing import Any

import tomli_w
from filelock import FileLock, Timeout

from umbel.config import RunConfig
from umbel.errors import ConfigError, RunError, UmbelError
from umbel.files import fsync_folder, write_atomic
from umbel.paths import runs_root

CONFIG = "config.toml"
METRICS = "metrics.jsonl"
REPORT = "report.html"
ERROR = "error.json"

# Options that say where results go or how long to wait, how often to look, and how fast a step is computed;
# no value of an adapter depends on them, so a resumed run may change them. (Microbatches and threads change the
# order of floating-point sums and therefore stay out of this list.)
_FREE = frozenset(
    {
        "run.directory",
        "run.id",
        "federation.timeout",
        "federation.wait",
        "evaluate.every",
        "evaluate.limit",
        "evaluate.batch-size",
        "evaluate.clients",
        "evaluate.central",
        "evaluate.central-rate",
        "evaluate.main",
        "evaluate.others",
        "secagg.stage-timeout",
        "secagg.attempts",
    }
)


def find_run(name: str, directory: str = "runs") -> Path:
    """The folder of an existing run, given its id or its path.

    Raises:
        RunError: there is no such run.
    """
    for candidate in (runs_root(directory) / name, Path(name).expanduser()):
        if name and (candidate / CONFIG).is_file():
            return candidate.absolute()
    raise RunError(f"Run {name!r} is not in {runs_root(directory)}: list the runs with 'umbel runs'.")


def list_runs(directory: str = "runs") -> list[Path]:
    """Folders of all runs, oldest first; empty when there are none."""
    root = runs_root(directory)
    found = [path.parent for path in root.glob(f"*/{CONFIG}")] if root.is_dir() else []
    return sorted(found, key=lambda path: ((path / CONFIG).stat().st_mtime, path.name))


def read_config(folder: Path) -> RunConfig:
    """The options of the run in ``folder``.

    Raises:
        RunError: ``config.toml`` is missing or is not TOML.
        ConfigError: it holds an option that this version does not know.
    """
    path = folder / CONFIG
    try:
        nested = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RunError(f"{path} cannot be read ({error}): choose another run.id or restore the file.") from None
    return RunConfig.from_nested(nested)


def first_difference(old: RunConfig, new: RunConfig) -> str | None:
    """The first option, in the order of RunConfig, that differs and changes the result; None when there is none."""
    before, after = old.to_flat(), new.to_flat()
    return next((key for key, value in after.items() if key not in _FREE and before.get(key) != value), None)


class RunFolder:
    """One run's folder, locked for as long as this object is open. Use as a context manager, or ``close`` it."""

    def __init__(self, path: Path, config: RunConfig, lock: FileLock, *, resumed: bool) -> None:
        self.path = path
        self.id = path.name
        self.config = config
        self.resumed = resumed
        """Whether an earlier process finished a round, or the whole run, here."""
        self._lock = lock

    @classmethod
    def open(cls, config: RunConfig, flower_run_id: int | str) -> RunFolder:
        """Creates the run's folder, or opens the existing one to resume it.

        A folder in which no round was finished holds nothing worth resuming: it starts anew, with these options.

        Args:
            config: all options; ``run.directory`` and ``run.id`` choose the folder.
            flower_run_id: names the folder when ``run.id`` is ``auto``.

        Raises:
            RunError: the folder cannot be written, or another process runs in it.
            ConfigError: the existing folder's config differs in an option that changes the result.
        """
        section = config.run
        path = runs_root(section.directory) / (str(flower_run_id) if section.id == "auto" else section.id)
        created = not path.exists()
        _refuse_foreign(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            _probe(path)
        except OSError as error:
            if created:
                discard_unused(path)
            raise RunError(
                f"The run folder {path} cannot be written ({error.strerror}): choose a run.directory that you may "
                "write to, with space left."
            ) from None
        lock = FileLock(str(path / ".lock"), timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise RunError(
                f"Run {path.name!r} is running in another process: wait for it or choose another run.id."
            ) from None
        except OSError as error:
            raise RunError(
                f"Run {path.name!r} cannot be locked ({error.strerror}): choose another run.directory."
            ) from None
        try:
            resumed = resumable(path)
            if resumed:
                _refuse_difference(path, config)
            else:
                if (path / CONFIG).is_file():
                    read_config(path)  # a config.toml of something else is refused, not replaced
                (path / METRICS).unlink(missing_ok=True)
                write_atomic(path / CONFIG, tomli_w.dumps(config.to_nested()).encode())
            (path / ERROR).unlink(missing_ok=True)
            return cls(path, config, lock, resumed=resumed)
        except BaseException:
            lock.release()
            if created:
                discard_unused(path)
            raise

    @property
    def config_path(self) -> Path:
        """``config.toml``."""
        return self.path / CONFIG

    @property
    def metrics(self) -> Path:
        """``metrics.jsonl``."""
        return self.path / METRICS

    @property
    def checkpoint(self) -> Path:
        """The folder of the checkpoint; not created here."""
        return self.path / "checkpoint"

    @property
    def adapter(self) -> Path:
        """The folder that PEFT loads; not created here."""
        return self.path / "adapter"

    @property
    def report(self) -> Path:
        """``report.html``."""
        return self.path / REPORT

    @property
    def finished(self) -> bool:
        """Whether the run has ended: its last metrics line says so."""
        return _has_ended(self.metrics)

    def fail(self, error: UmbelError) -> None:
        """Leaves ``error.json`` for whoever started the run; a disk that is full stays silent."""
        body = {"message": str(error), "exit_code": error.exit_code}
        try:
            write_atomic(self.path / ERROR, json.dumps(body).encode())
        except RunError:
            return

    def close(self) -> None:
        """Gives up the lock; may be called twice."""
        self._lock.release()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def resumable(folder: Path) -> bool:
    """Whether a run in ``folder`` has finished a round, or has ended: its options are then settled.

    Raises:
        RunError: its metrics are damaged.
    """
    return (folder / CONFIG).is_file() and (_has_files(folder / "checkpoint") or _has_ended(folder / METRICS))


def read_error(folder: Path) -> tuple[str, int] | None:
    """The sentence and exit code that :meth:`RunFolder.fail` left, or None."""
    try:
        body: dict[str, Any] = json.loads((folder / ERROR).read_text(encoding="utf-8"))
        return str(body["message"]), int(body["exit_code"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _probe(path: Path) -> None:
    """Raises OSError unless a file can be written, synced and renamed here (root passes permission bits)."""
    descriptor, name = tempfile.mkstemp(dir=path, prefix=".probe.")
    try:
        os.write(descriptor, b"\0" * 4096)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
        os.unlink(name)
    fsync_folder(path)


def _has_ended(metrics: Path) -> bool:
    from coordinator.tracking import read_metrics

    return metrics.is_file() and read_metrics(metrics).end is not None


def _refuse_foreign(path: Path) -> None:
    """A folder that holds other things is no run folder: nothing of a user's is mixed with a run or replaced."""
    try:
        foreign = path.is_dir() and not (path / CONFIG).is_file() and _has_files(path)
        wrong = foreign or (path.exists() and not path.is_dir())
    except OSError as error:
        raise RunError(
            f"The run folder {path} cannot be read ({error.strerror}): choose another run.directory."
        ) from None
    if wrong:
        raise RunError(f"{path} exists and is not the folder of a run: choose another run.id.")


def _has_files(folder: Path) -> bool:
    return folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir())


def _refuse_difference(path: Path, config: RunConfig) -> None:
    old = read_config(path)
    key = first_difference(old, config)
    if key is not None:
        raise ConfigError(
            f"Run {path.name!r} was started with {key} = {old.to_flat()[key]!r}, not {config.to_flat()[key]!r}: "
            "resume it with the same options or choose another run.id."
        )


def discard_unused(path: Path) -> bool:
    """Removes the folder of a run in which nothing happened: no metrics, no checkpoint, no adapter, nothing else.

    The caller holds the run's lock, or knows that nobody runs. Whatever did not come from :meth:`RunFolder.open`
    keeps the folder as it is.

    Returns:
        Whether the folder is gone.
    """
    own = {CONFIG, ERROR, ".lock"}
    try:
        if any(entry.name not in own for entry in path.iterdir()):
            return False
        for name in own:
            (path / name).unlink(missing_ok=True)
        path.rmdir()
    except OSError:
        return False
    return True


__all__ = [
    "RunFolder",
    "discard_unused",
    "find_run",
    "first_difference",
    "list_runs",
    "read_config",
    "read_error",
    "resumable",
    "runs_root",
]
