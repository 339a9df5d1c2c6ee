"""The stubs in the tree are those of the .proto in the tree."""

from tests.stubs import assert_generated


def test_the_stubs_are_generated_from_the_proto(tmp_path):
    assert_generated("client/agent", "agent", tmp_path, "generate it again (docs/site.md says how)")
