"""What tests of generated gRPC stubs share."""

import shutil
from pathlib import Path

import pytest


def assert_generated(package: str, proto: str, scratch: Path, hint: str) -> None:
    """The committed stubs of ``package`` (a folder of the tree) are those of its ``proto``.

    Args:
        hint: what to do about stale ones.
    """
    protoc = pytest.importorskip("grpc_tools.protoc")
    source = Path(__file__).resolve().parents[1] / package
    made = scratch / package
    made.mkdir(parents=True)
    shutil.copy(source / f"{proto}.proto", made)
    out = [f"--{kind}_out={scratch}" for kind in ("python", "pyi", "grpc_python")]
    assert protoc.main(["protoc", f"-I{scratch}", *out, f"{package}/{proto}.proto"]) == 0
    for name in (f"{proto}_pb2.py", f"{proto}_pb2.pyi", f"{proto}_pb2_grpc.py"):
        assert (made / name).read_text() == (source / name).read_text(), f"{name} is stale: {hint}"
