"""Each decoder for a few seconds under atheris: `make fuzz`, or `python -m tests.fuzz --seconds 60 roster grant`."""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

LONGEST = 1 << 14
HANGS = 20
"""Seconds for one input."""
MEMORY_MB = 4096


def fuzz(name: str, seconds: int, artifacts: Path) -> bool:
    """One decoder in a process of its own; prints a line, and says whether it held."""
    with tempfile.TemporaryDirectory(prefix="umbel-fuzz-") as scratch:
        corpus = Path(scratch) / "corpus"
        corpus.mkdir()
        limits = [f"-max_total_time={seconds}", f"-timeout={HANGS}", f"-rss_limit_mb={MEMORY_MB}"]
        command = [sys.executable, "-m", "tests.fuzz.harness", name, str(corpus), f"-max_len={LONGEST}", *limits]
        done = subprocess.run(
            [*command, f"-artifact_prefix={artifacts}/{name}-", "-print_final_stats=1"],
            env={**os.environ, "TMPDIR": scratch},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
    runs = re.search(r"number_of_executed_units: *(\d+)", done.stdout)
    covered = re.findall(r"cov: (\d+)", done.stdout)
    held = done.returncode == 0 and runs is not None
    print(f"{name:<24} {runs[1] if runs else '-':>9} inputs  cov {covered[-1] if covered else '-':>6}  "
          f"{'held' if held else 'FAILED'}", flush=True)  # fmt: skip
    if not held:
        print(done.stdout[-4000:])
    return held


def main() -> int:
    """Exit status: 0 when every decoder held."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=int, default=5, help="a decoder")
    parser.add_argument("--artifacts", type=Path, default=Path("fuzz-artifacts"), help="where failing inputs go")
    parser.add_argument("names", nargs="*", help="decoders; default all")
    given = parser.parse_args()
    if importlib.util.find_spec("atheris") is None:
        print("atheris is not installed: pip install '.[fuzz]'")
        return 1
    from tests.fuzz.targets import TARGETS

    unknown = [name for name in given.names if name not in TARGETS]
    if unknown:
        print(f"There is no decoder {unknown[0]!r}: choose among {', '.join(TARGETS)}.")
        return 1
    given.artifacts.mkdir(exist_ok=True)
    failed = [name for name in given.names or TARGETS if not fuzz(name, given.seconds, given.artifacts)]
    if not any(given.artifacts.iterdir()):
        given.artifacts.rmdir()
    print(f"{len(failed)} failed: {', '.join(failed)}" if failed else "every decoder held")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
