"""taskiq with taskiq-redis: a stream with a consumer group, its broker that acknowledges; results as keys."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import redis
import uvloop
from taskiq import TaskiqEvents
from taskiq.api import run_receiver_task
from taskiq.serializers import ORJSONSerializer
from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker

from benchmarks.peers.harness import Peer, main

SUBMITTERS = 20
RESULTS = "result"


async def noop(payload: str) -> int:
    return len(payload)


def broker(url: str) -> RedisStreamBroker:
    results = RedisAsyncResultBackend(
        url, result_ex_time=3600, prefix_str=RESULTS, serializer=ORJSONSerializer(), max_connection_pool_size=100
    )
    return (
        RedisStreamBroker(url, max_connection_pool_size=100, xread_count=20)
        .with_result_backend(results)
        .with_serializer(ORJSONSerializer())
    )


def work(url: str, ready: Callable[[], None]) -> None:
    async def serve() -> None:
        own = broker(url)
        own.register_task(noop, task_name="noop")
        own.add_event_handler(TaskiqEvents.WORKER_STARTUP, lambda state: ready())
        await run_receiver_task(own, max_async_tasks=50, max_prefetch=100, run_startup=True)

    uvloop.run(serve())


def submit(url: str, jobs: int, payload: str) -> list[str]:
    async def enqueue() -> list[str]:
        own = broker(url)
        task = own.register_task(noop, task_name="noop")
        await own.startup()
        ids: list[str] = []

        async def submitter(numbers: range) -> None:
            for _ in numbers:
                kicked = await task.kiq(payload)
                ids.append(kicked.task_id)

        await asyncio.gather(*(submitter(range(n, jobs, SUBMITTERS)) for n in range(SUBMITTERS)))
        await own.shutdown()
        return ids

    return uvloop.run(enqueue())


def read(client: redis.Redis, ids: list[str]) -> list[bytes | None]:
    return client.mget([f"{RESULTS}:{job}" for job in ids])


if __name__ == "__main__":
    main(Peer("taskiq", work, submit, read))
