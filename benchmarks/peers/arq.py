"""arq: a sorted set, polled; jobs and results as keys."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgpack
import redis
import uvloop
from arq import create_pool
from arq.connections import RedisSettings
from arq.worker import Worker

from benchmarks.peers.harness import Peer, main

SUBMITTERS = 20
SERIALIZER = {"job_serializer": msgpack.packb, "job_deserializer": lambda data: msgpack.unpackb(data, raw=False)}


async def noop(ctx: dict[str, Any], payload: str) -> int:
    return len(payload)


def work(url: str, ready: Callable[[], None]) -> None:
    async def on_startup(ctx: dict[str, Any]) -> None:
        ready()

    asyncio.set_event_loop(uvloop.new_event_loop())
    Worker(
        [noop],
        redis_settings=RedisSettings.from_dsn(url),
        on_startup=on_startup,
        max_jobs=100,  # by default 10
        poll_delay=0.01,  # by default 0.5 s
        log_results=False,
        **SERIALIZER,
    ).run()


def submit(url: str, jobs: int, payload: str) -> list[str]:
    async def enqueue() -> list[str]:
        pool = await create_pool(RedisSettings.from_dsn(url), **SERIALIZER)
        ids: list[str] = []

        async def submitter(numbers: range) -> None:
            for _ in numbers:
                job = await pool.enqueue_job("noop", payload)
                ids.append(job.job_id)

        await asyncio.gather(*(submitter(range(n, jobs, SUBMITTERS)) for n in range(SUBMITTERS)))
        await pool.aclose()
        return ids

    return uvloop.run(enqueue())


def read(client: redis.Redis, ids: list[str]) -> list[bytes | None]:
    return client.mget([f"arq:result:{job}" for job in ids])


if __name__ == "__main__":
    main(Peer("arq", work, submit, read))
