"""The stubs in the tree are those of release.proto."""

import shutil
from pathlib import Path

import pytest

import coordinator.release

PACKAGE = Path(coordinator.release.__file__).parent


def test_the_stubs_are_generated_from_the_proto(tmp_path):
    protoc = pytest.importorskip("grpc_tools.protoc")
    (tmp_path / "coordinator" / "release").mkdir(parents=True)
    shutil.copy(PACKAGE / "release.proto", tmp_path / "coordinator" / "release")
    out = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    assert protoc.main(["protoc", f"-I{tmp_path}", *out, "coordinator/release/release.proto"]) == 0
    for name in ("release_pb2.py", "release_pb2.pyi", "release_pb2_grpc.py"):
        made = (tmp_path / "coordinator" / "release" / name).read_text()
        assert made == (PACKAGE / name).read_text(), f"{name} is stale: docs/release.md says how it is generated"
