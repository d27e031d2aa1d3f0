"""A served gateway over a cluster that simulates, and the official client of it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from cluster_fixtures import Cluster, cluster_of
from openai import AsyncOpenAI

from tokenyard.gateway.api_keys import ApiKeys
from tokenyard.gateway.app import gateway
from tokenyard.gateway.server import listen, served

ANYBODY = ApiKeys({}, anybody="default")


@asynccontextmanager
async def serving(cluster: Cluster, folder: Path, keys: ApiKeys = ANYBODY, **settings: Any) -> AsyncGenerator[str]:
    """A gateway of the cluster's server for the length of the block; gives its base URL."""
    mine = cluster.settings.model_copy(update=settings)
    async with gateway(cluster.url, mine, keys, folder) as app:
        listener = listen("127.0.0.1", 0)
        async with served(app, listener):
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"


@asynccontextmanager
async def openai_of(url: str, key: str = "any-key") -> AsyncGenerator[AsyncOpenAI]:
    """The official client, which sends nothing twice."""
    async with AsyncOpenAI(base_url=url, api_key=key, max_retries=0) as client:
        yield client


@asynccontextmanager
async def scheduled_cluster(url: str, pool: str) -> AsyncGenerator[Cluster]:
    """A cluster whose scheduler runs."""
    async with cluster_of(url, pool) as cluster:
        cluster.schedule()
        yield cluster
