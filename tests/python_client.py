"""What tests of the Python client need beside it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from cluster_fixtures import Cluster, cluster_of, instant_engine

from tokenyard import AsyncClient
from tokenyard.client import BatchResult


@pytest.fixture(name="cluster")
async def cluster_fixture(redis_url: str, pool: str) -> AsyncIterator[Cluster]:
    """A cluster in which nobody serves yet."""
    async with cluster_of(redis_url, pool) as running:
        yield running


@pytest.fixture(name="client")
async def client_fixture(cluster: Cluster) -> AsyncIterator[AsyncClient]:
    """A client of ``cluster``."""
    async with AsyncClient(cluster.url, model=cluster.model, durable=False) as client:
        yield client


async def serve(cluster: Cluster) -> None:
    """A worker that ends requests at once."""
    await cluster.join("w", instant_engine(cluster.model))
    cluster.schedule()


async def all_of(results: AsyncIterator[BatchResult]) -> list[BatchResult]:
    """Every result, in the order in which they come."""
    return [result async for result in results]
