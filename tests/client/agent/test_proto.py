"""The stubs in the tree are those of the .proto in the tree."""

import shutil
from pathlib import Path

import pytest

import client.agent

PACKAGE = Path(client.agent.__file__).parent


def test_the_stubs_are_generated_from_the_proto(tmp_path):
    protoc = pytest.importorskip("grpc_tools.protoc")
    (tmp_path / "client" / "agent").mkdir(parents=True)
    shutil.copy(PACKAGE / "agent.proto", tmp_path / "client" / "agent")
    out = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    assert protoc.main(["protoc", f"-I{tmp_path}", *out, "client/agent/agent.proto"]) == 0
    for name in ("agent_pb2.py", "agent_pb2.pyi", "agent_pb2_grpc.py"):
        made = (tmp_path / "client" / "agent" / name).read_text()
        assert made == (PACKAGE / name).read_text(), f"{name} is stale: generate it again (docs/site.md says how)"
