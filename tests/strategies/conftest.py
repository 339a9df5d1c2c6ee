import pytest

from tests.strategies.rounds import Bench


@pytest.fixture(scope="session")
def bench():
    return Bench
