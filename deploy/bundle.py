"""An offline installation: wheels, the images' names, the files of ``deploy/``, checksums and an ``install.sh``.

::

    BUNDLE/
    ├── wheels/            umbel and everything it stands on
    ├── requirements.lock  every wheel by version and SHA-256: pip refuses any other file
    ├── images.txt         container images, for a machine that mirrors them; umbel's own are built from the bundle
    ├── deploy/            Compose files, chart, units, Dockerfiles, proxy, dashboard
    ├── install.sh         installs from wheels/ alone, without any network
    ├── MANIFEST.json      versions, platform, size and SHA-256 of every file
    └── SHA256SUMS         the same for sha256sum -c

The hashes show what changed on the way. That the bundle is the right one to begin with follows from comparing the
hash of ``SHA256SUMS``, which ``umbel bundle write`` prints, over another channel.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import deploy
from umbel import __version__
from umbel.errors import DeployError
from umbel.files import sha256_of, write_atomic

MANIFEST, SUMS, LOCK, IMAGES, INSTALL, WHEELS = (
    "MANIFEST.json",
    "SHA256SUMS",
    "requirements.lock",
    "images.txt",
    "install.sh",
    "wheels",
)
FORMAT = 1
_WHEEL = re.compile(r"(?P<name>[A-Za-z0-9_.]+)-(?P<version>[A-Za-z0-9_.!+]+)(-\d[^-]*)?-[^-]+-[^-]+-[^-]+\.whl")
_COMPOSED = re.compile(r"^\s*image:\s*\"?(?:\$\{[A-Z_]+:-([^}]+)\}|([a-z0-9][^\s\"$]*))", re.MULTILINE)
_BASE = re.compile(r"^ARG PYTHON_IMAGE=(\S+)$", re.MULTILINE)
_CHARTED = re.compile(r"^ *repository: (\S+)\n *tag: (\S+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Plan:
    """What goes into a bundle.

    Attributes:
        project: folder with umbel's pyproject.toml, or a wheel of it.
        target: folder to make; must not exist or be empty.
        python: version of the target's Python, ``3.11``; None takes this one's.
        platforms: pip's platform tags of the target, none for this machine's.
        options: more for pip: an index with CPU builds of torch, a constraints file.
    """

    project: Path
    target: Path
    python: str | None = None
    platforms: tuple[str, ...] = ()
    options: tuple[str, ...] = field(default=())


def write_bundle(plan: Plan) -> str:
    """Writes a bundle and returns the SHA-256 of its SHA256SUMS; where it fails, nothing is left of it.

    Raises:
        DeployError: the target is not empty or cannot be written, pip is missing or fails, or a dependency has no wheel
            for another machine's platform (for a machine like this one it is built here).
    """
    target = plan.target.expanduser().absolute()
    made = False
    try:
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise DeployError(f"{target} is not empty: give the name of a new folder.")
        made = not target.exists()
        target.mkdir(parents=True, exist_ok=True)
        try:
            return _fill(plan, target)
        except BaseException:
            _empty(target, remove=made)  # so that the next try finds room
            raise
    except OSError as error:
        raise DeployError(
            f"The bundle cannot be written to {target} ({error.strerror or error}): choose a folder that you may write "
            "to, with room on the disk."
        ) from None


def _empty(target: Path, *, remove: bool) -> None:
    """Removes what is in a folder that was empty before, and the folder where it was made."""
    for path in target.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    if remove:
        target.rmdir()


def _fill(plan: Plan, target: Path) -> str:
    wheels = target / WHEELS
    wheels.mkdir()
    own = _own_wheel(plan.project, wheels)
    if plan.python is None and not plan.platforms:
        # For a machine like this one: what has no wheel is built here.
        _pip("wheel", "--quiet", "--wheel-dir", str(wheels), *plan.options, str(own))
    else:
        _pip("download", "--quiet", "--dest", str(wheels), *_selection(plan), *plan.options, str(own))
    lock = "".join(sorted(_locked(wheels)))
    write_atomic(target / LOCK, lock.encode())
    source = Path(deploy.__file__).parent
    _copy_static(source, target / "deploy")
    write_atomic(target / IMAGES, "".join(f"{image}\n" for image in images(source)).encode())
    shutil.copyfile(source / INSTALL, target / INSTALL)
    (target / INSTALL).chmod(0o755)
    _write_manifest(plan, target)
    return _write_sums(target)


def verify_bundle(target: Path, *, sums: str | None = None) -> int:
    """Checks every file and returns how many there are.

    Args:
        target: folder of the bundle.
        sums: SHA-256 of SHA256SUMS as its maker told it, or None.

    Raises:
        DeployError: a file is missing, added or altered, or the bundle is not the one that ``sums`` names.
    """
    target = target.expanduser().absolute()
    text = _read(target / SUMS)
    if sums is not None and hashlib.sha256(text).hexdigest() != sums.lower():
        raise DeployError(f"{target / SUMS} is not the one with hash {sums[:16]}: ask for the bundle again.")
    expected = dict(_parse_sums(text.decode("utf-8", errors="replace"), target))
    found = {path.relative_to(target).as_posix() for path in _files(target)} - {SUMS}
    for name in sorted(expected.keys() - found):
        raise DeployError(f"{name} is missing from {target}: copy the bundle again.")
    for name in sorted(found - expected.keys()):
        raise DeployError(f"{name} in {target} belongs to no bundle: remove it, or copy the bundle again.")
    for name, digest in sorted(expected.items()):
        if sha256_of(target / name) != digest:
            raise DeployError(f"{name} in {target} was altered: copy the bundle again and find out how.")
    return len(expected)


def images(source: Path) -> list[str]:
    """Names of all container images that the Compose files, the charts' values and the Dockerfiles name."""
    found = set()
    for path in source.glob("compose/*.yaml"):
        found |= {given or plain for given, plain in _COMPOSED.findall(path.read_text(encoding="utf-8"))}
    for path in source.glob("helm/*/values.yaml"):
        found |= {f"{name}:{tag}" for name, tag in _CHARTED.findall(path.read_text(encoding="utf-8"))}
    for path in source.glob("docker/Dockerfile*"):
        found |= set(_BASE.findall(path.read_text(encoding="utf-8")))
    return sorted(found)


def _own_wheel(project: Path, wheels: Path) -> Path:
    if project.suffix == ".whl":
        if not project.is_file():
            raise DeployError(f"There is no wheel {project}: give a wheel of umbel or a checkout.")
        return Path(shutil.copy(project, wheels))
    if not (project / "pyproject.toml").is_file():
        raise DeployError(f"{project} is no checkout of umbel: give one, or a wheel of umbel.")
    with tempfile.TemporaryDirectory(prefix="umbel-bundle-") as folder:
        _pip("wheel", "--quiet", "--no-deps", "--wheel-dir", folder, str(project))
        (made,) = Path(folder).glob("*.whl")
        return Path(shutil.copy(made, wheels))


def _selection(plan: Plan) -> Iterator[str]:
    yield "--only-binary=:all:"
    if plan.python is not None:
        yield from ("--python-version", plan.python)
    for tag in plan.platforms:
        yield from ("--platform", tag)


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        raise DeployError(
            f"pip {arguments[0]} failed ({' '.join(lines[-1].split()) if lines else 'no message'}): check the network, "
            "or give another --python or --platform."
        )


def _locked(wheels: Path) -> Iterator[str]:
    for path in sorted(wheels.iterdir()):
        match = _WHEEL.fullmatch(path.name)
        if match is None:
            raise DeployError(f"{path.name} is no wheel: a machine without a network cannot build it; leave it out.")
        name = re.sub(r"[-_.]+", "-", match["name"]).lower()
        yield f"{name}=={match['version'].replace('_', '-')} --hash=sha256:{sha256_of(path)}\n"


def _copy_static(source: Path, target: Path) -> None:
    """Everything of ``deploy/`` that is no Python."""
    for path in _files(source):
        if path.suffix in (".py", ".pyc") or path.name == INSTALL:
            continue
        place = target / path.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)


def _write_manifest(plan: Plan, target: Path) -> None:
    body = {
        "format": FORMAT,
        "umbel": __version__,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": plan.python or platform.python_version(),
        "platforms": list(plan.platforms) or [f"{sys.platform}-{platform.machine()}"],
        "files": {
            path.relative_to(target).as_posix(): {"size": path.stat().st_size, "sha256": sha256_of(path)}
            for path in _files(target)
        },
    }
    write_atomic(target / MANIFEST, (json.dumps(body, indent=1) + "\n").encode())


def _write_sums(target: Path) -> str:
    lines = [f"{sha256_of(path)}  {path.relative_to(target).as_posix()}\n" for path in _files(target)]
    data = "".join(lines).encode()
    write_atomic(target / SUMS, data)
    return hashlib.sha256(data).hexdigest()


def _parse_sums(text: str, target: Path) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(text.splitlines(), start=1):
        digest, separator, name = line.partition("  ")
        inside = not name.startswith("/") and ".." not in Path(name).parts
        if not separator or not re.fullmatch("[0-9a-f]{64}", digest) or not inside:
            raise DeployError(f"Line {number} of {target / SUMS} is no checksum: copy the bundle again.")
        yield name, digest


def _files(folder: Path) -> list[Path]:
    """Plain files, sorted; a link has no business in a bundle.

    Raises:
        DeployError: there is a link.
    """
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            raise DeployError(f"{path} is a link: a bundle holds plain files alone, so remove it.")
        if path.is_file() and "__pycache__" not in path.parts:
            found.append(path)
    return found


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DeployError(f"{path} cannot be read ({error.strerror}): give the folder of a bundle.") from None
