import pytest


@pytest.fixture(scope="session")
def ray_two():
    """A local Ray with two CPUs."""
    from simulations.cluster import ray_session

    with ray_session(cpus=2, gpus=0, store_mb=300) as nodes:
        yield nodes
