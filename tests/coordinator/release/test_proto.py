"""The stubs in the tree are those of release.proto."""

from tests.stubs import assert_generated


def test_the_stubs_are_generated_from_the_proto(tmp_path):
    assert_generated("coordinator/release", "release", tmp_path, "docs/release.md says how it is generated")
