"""saq as it comes, for the recovery benchmark: ``work URL`` or ``submit URL SECONDS NAME ...``."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from redis import asyncio as aioredis
from saq import Worker
from saq.queue.redis import RedisQueue

from benchmarks.peers.recovery_job import job


async def run(ctx: dict[str, Any], *, name: str, seconds: float) -> None:
    await job(name, seconds)


def queue(url: str) -> RedisQueue:
    # Queue.from_url refuses unix:// addresses; redis-py 8 gives up on a blocking move after 5 s.
    return RedisQueue(aioredis.Redis.from_url(url, socket_timeout=None))


async def work(url: str) -> None:
    own = queue(url)
    await own.connect()
    await Worker(own, [run]).start()


async def submit(url: str, seconds: float, names: list[str]) -> None:
    own = queue(url)
    await own.connect()
    for name in names:
        await own.enqueue("run", name=name, seconds=seconds)
    await own.disconnect()


if __name__ == "__main__":
    if sys.argv[1] == "work":
        asyncio.run(work(sys.argv[2]))
    else:
        asyncio.run(submit(sys.argv[2], float(sys.argv[3]), sys.argv[4:]))
