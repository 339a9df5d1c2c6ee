"""Publishing: a finished run's adapter becomes a signed, numbered release; and going back to an earlier one."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from coordinator.export import adapter_of
from coordinator.release.blobs import Blobs
from coordinator.release.manifest import (
    HEAD_PURPOSE,
    MAX_MANIFEST_BYTES,
    PURPOSE,
    Head,
    Manifest,
    ReleasedBase,
    ReleasedFile,
    ReleasedPrivacy,
)
from coordinator.release.registry import Registry, Release, Signed
from coordinator.release.rules import MAX_FILES, check_content, check_file_name, check_release_name
from coordinator.report.summary import summarize
from coordinator.run_folder import CONFIG, METRICS, read_config
from coordinator.tracking import Metrics, read_metrics
from umbel import __version__
from umbel.config import RunConfig
from umbel.errors import DeployError
from umbel.keyfile import read_private
from umbel.signed import read_signing_key, sign
from umbel.signers import pinned_signers


def release_key(member: Path) -> Ed25519PrivateKey:
    """The key with which the coordinator in the folder ``member`` signs.

    Raises:
        DeployError: it is missing or open to others, or the federation's list of signers does not hold it.
    """
    path = member / "identity" / "identity.key"
    key = read_signing_key(read_private(path), str(path))
    if key.public_key().public_bytes_raw() not in pinned_signers(member / "identity").values():
        raise DeployError(
            f"The key {path} is not on the federation's list of signers, so that no site would take the release: give "
            "the folder of an enrolled coordinator."
        )
    return key


def publish(run: Path, name: str, key: Ed25519PrivateKey, registry: Registry, blobs: Blobs) -> Manifest:
    """Signs the adapter of a finished run and makes it the current version of ``name``.

    The files are stored first and the row last: a crash in between leaves files that no release names.

    Args:
        run: folder of the run.
        name: of the release; versions count from 1 under each name.
        key: that signs manifest and head.
        registry: of releases.
        blobs: where the files are kept.

    Raises:
        DeployError: a file has no place in a release, or registry or store cannot be used.
        RunError: the run has not finished, or has no adapter.
    """
    check_release_name(name)
    config, metrics = read_config(run), read_metrics(run / METRICS)
    if metrics.end is None or metrics.start is None:
        raise DeployError(f"Run {run.name!r} has not finished: run it to its end before it is released.")
    sources = sorted(path for path in adapter_of(run).iterdir() if not path.name.startswith("."))
    if len(sources) > MAX_FILES:
        raise DeployError(f"The adapter has {len(sources)} files: a release holds at most {MAX_FILES}.")
    for path in sources:
        if path.is_symlink() or not path.is_file():
            raise DeployError(f"{path} is no plain file: a release holds plain files only.")
        check_file_name(path.name)
        check_content(path)
    files = []
    for path in sources:
        digest, size = blobs.add(path)
        files.append(ReleasedFile(name=path.name, size=size, sha256=digest))
    digest = hashlib.sha256((run / CONFIG).read_bytes()).hexdigest()
    made: list[Manifest] = []

    def make(version: int) -> Release:
        manifest = _manifest(name, version, run.name, config, metrics, digest, files)
        made[:] = [manifest]
        data = manifest.to_bytes()
        if len(data) > MAX_MANIFEST_BYTES:
            raise DeployError(f"The manifest is larger than {MAX_MANIFEST_BYTES} bytes: release fewer files.")
        return Release(
            name=name,
            version=version,
            run=run.name,
            created=manifest.created,
            size=manifest.size,
            manifest=data,
            signature=sign(data, key, PURPOSE, version),
        )

    registry.publish(name, make, _signed_head(name, key))
    return made[0]


def rollback(name: str, key: Ed25519PrivateKey, registry: Registry, version: int = 0) -> int:
    """Makes an earlier version the current one, by a new signed head; returns that version.

    Args:
        name: of the release.
        key: that signs.
        registry: of releases.
        version: to go back to; 0 takes the newest one below the current.

    Raises:
        DeployError: there is nothing to go back to.
    """
    current = registry.head(check_release_name(name))
    if current is None:
        raise DeployError(f"Nothing was released under {name!r}: 'umbel release list' shows what there is.")
    if version == 0:
        earlier = [release.version for release, _ in registry.releases(name) if release.version < current.version]
        if not earlier:
            raise DeployError(f"{name} {current.version} has no earlier version to go back to: publish another run.")
        version = max(earlier)
    registry.make_current(name, version, _signed_head(name, key))
    return version


def _signed_head(name: str, key: Ed25519PrivateKey) -> Callable[[int, int], Signed]:
    def make(version: int, sequence: int) -> Signed:
        data = Head(name=name, version=version, sequence=sequence, time=int(time.time())).to_bytes()
        return data, sign(data, key, HEAD_PURPOSE, sequence)

    return make


def _manifest(
    name: str, version: int, run: str, config: RunConfig, metrics: Metrics, digest: str, files: list[ReleasedFile]
) -> Manifest:
    start = metrics.start
    assert start is not None
    return Manifest(
        name=name,
        version=version,
        run=run,
        created=int(time.time()),
        umbel=__version__,
        strategy=config.strategy.name,
        config=digest,
        base=ReleasedBase(name=start.base.name, hash=start.base.hash, quantization=start.base.quantization),
        adapter=start.adapter.spec_hash,
        values=start.adapter.size,
        privacy=_privacy(metrics),
        files=files,
    )


def _privacy(metrics: Metrics) -> ReleasedPrivacy:
    spent = summarize(metrics).privacy
    secagg = metrics.start.secagg if metrics.start else None
    return ReleasedPrivacy(
        epsilon=spent.epsilon if spent else None,
        delta=spent.delta if spent else None,
        statement=spent.statement
        if spent
        else "No differential privacy: the adapter carries no guarantee about what can be learnt from it.",
        aggregation=f"Secure aggregation: {secagg.mode or 'on'}, threshold {secagg.threshold}."
        if secagg
        else "Secure aggregation was off: the coordinator could read each client's update.",
    )
