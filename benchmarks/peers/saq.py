"""saq: a list with blocking moves; job and result in one key."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import orjson
import redis
import uvloop
from redis import asyncio as aioredis
from saq import Worker
from saq.queue.redis import RedisQueue

from benchmarks.peers.harness import Peer, main

SUBMITTERS = 20
CONCURRENCY = 25  # by default 10; each holds a connection, and redis-py 8 gives out no more than 100


async def noop(ctx: dict[str, Any], *, payload: str) -> int:
    return len(payload)


def queue(url: str) -> RedisQueue:
    # Queue.from_url refuses unix:// addresses.
    return RedisQueue(
        # redis-py 8 gives up on a reply after 5 s: a blocking move that it then tries again loses its job.
        aioredis.Redis.from_url(url, socket_timeout=None),
        dump=orjson.dumps,
        load=orjson.loads,
        max_concurrent_ops=SUBMITTERS,  # by default 20
    )


def work(url: str, ready: Callable[[], None]) -> None:
    async def startup(ctx: dict[str, Any]) -> None:
        ready()

    async def serve() -> None:
        own = queue(url)
        await own.connect()
        await Worker(own, [noop], concurrency=CONCURRENCY, startup=startup).start()

    uvloop.run(serve())


def submit(url: str, jobs: int, payload: str) -> list[str]:
    async def enqueue() -> list[str]:
        own = queue(url)
        await own.connect()
        ids: list[str] = []

        async def submitter(numbers: range) -> None:
            for _ in numbers:
                job = await own.enqueue("noop", payload=payload)
                ids.append(job.id)

        await asyncio.gather(*(submitter(range(n, jobs, SUBMITTERS)) for n in range(SUBMITTERS)))
        await own.disconnect()
        return ids

    return uvloop.run(enqueue())


def read(client: redis.Redis, ids: list[str]) -> list[bytes | None]:
    # The result is written into the job.
    return [job if job and b'"status":"complete"' in job else None for job in client.mget(ids)]


if __name__ == "__main__":
    main(Peer("saq", work, submit, read))
