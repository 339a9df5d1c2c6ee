import pytest

from tests.simulations.batched.lanes import setting


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    return tmp_path_factory.mktemp("pictures")


@pytest.fixture
def case(pictures):
    """The composed model, made anew: a test may change it."""
    from mllm.testing import tiny_composed

    return setting(tiny_composed(), pictures)
