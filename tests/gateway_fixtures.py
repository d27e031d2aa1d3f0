"""A served gateway over a cluster that simulates, and the official client of it."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from cluster_fixtures import CHAT, Cluster, cluster_of, eventually
from openai import AsyncOpenAI
from openai.types import Batch

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


@pytest.fixture(name="cluster")
async def cluster_fixture(redis_url: str, pool: str) -> AsyncIterator[Cluster]:
    """A cluster whose scheduler runs, on the server that all tests share."""
    async with scheduled_cluster(redis_url, pool) as running:
        yield running


@pytest.fixture(name="client")
async def client_fixture(cluster: Cluster, tmp_path: Path) -> AsyncIterator[AsyncOpenAI]:
    """The official client of a gateway of ``cluster``, whose folder is the test's own."""
    async with serving(cluster, tmp_path) as url, openai_of(url) as client:
        yield client


def request_line(model: str, custom_id: str, **changes: Any) -> str:
    """A line of a batch file: a chat of three tokens."""
    body = {"model": model, "messages": [{"role": "user", "content": "Hi."}], "max_tokens": 3}
    line = {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": body}
    return json.dumps(line | changes)


async def upload(client: AsyncOpenAI, *lines: str) -> str:
    """Upload a batch file; its id."""
    content = "\n".join(lines).encode()
    return (await client.files.create(file=("in.jsonl", content), purpose="batch")).id


async def make_batch(client: AsyncOpenAI, file_id: str, **changes: Any) -> Batch:
    """Make a batch of a file."""
    wanted: dict[str, Any] = {"endpoint": CHAT, "completion_window": "24h"} | changes
    return await client.batches.create(input_file_id=file_id, **wanted)


async def in_status(client: AsyncOpenAI, batch_id: str, *statuses: str) -> Batch:
    """Wait until a batch is in one of these."""

    async def look() -> Batch | None:
        batch = await client.batches.retrieve(batch_id)
        return batch if batch.status in statuses else None

    return await eventually(look, f"the batch is {' or '.join(statuses)}")


async def lines_of(client: AsyncOpenAI, file_id: str | None) -> list[dict[str, Any]]:
    """The lines of an output file."""
    assert file_id is not None
    text = (await client.files.content(file_id)).text
    return [json.loads(line) for line in text.splitlines()]
