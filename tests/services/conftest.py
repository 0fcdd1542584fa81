"""Services on this machine that a study on many machines needs: each test asks for those that it uses.

The tests here carry the marker `services` and run where that is asked for: scripts/test-services.
"""

from collections.abc import Iterator

import pytest
from postgres import Cluster, run_cluster
from ray_nodes import RayNodes, run_ray


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what needs services unless it is asked for: it takes minutes."""
    if "services" in config.option.markexpr:
        return
    skip = pytest.mark.skip(reason="needs services of its own: scripts/test-services")
    for item in items:
        if item.get_closest_marker("services"):
            item.add_marker(skip)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Cluster]:
    """A PostgreSQL server. A test that stops it starts it again."""
    with run_cluster() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def ray_head() -> Iterator[RayNodes]:
    """A Ray cluster with no room for a training."""
    with run_ray() as nodes:
        yield nodes


@pytest.fixture
def ray_nodes(ray_head: RayNodes) -> Iterator[RayNodes]:
    """That cluster, which the hosts that a test lets join leave at its end."""
    yield ray_head
    ray_head.leave_all()


@pytest.fixture
def database(postgres: Cluster) -> str:
    """The address of an empty database."""
    return postgres.create_database()
