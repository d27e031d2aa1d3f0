"""arq as it comes, for the recovery benchmark: ``work URL`` or ``submit URL SECONDS NAME ...``."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from arq import create_pool
from arq.connections import RedisSettings
from arq.worker import Worker

from benchmarks.peers.recovery_job import job


async def run(ctx: dict[str, Any], name: str, seconds: float) -> None:
    await job(name, seconds)


async def submit(url: str, seconds: float, names: list[str]) -> None:
    pool = await create_pool(RedisSettings.from_dsn(url))
    for name in names:
        await pool.enqueue_job("run", name, seconds)
    await pool.aclose()


if __name__ == "__main__":
    if sys.argv[1] == "work":
        asyncio.set_event_loop(asyncio.new_event_loop())
        Worker([run], redis_settings=RedisSettings.from_dsn(sys.argv[2])).run()
    else:
        asyncio.run(submit(sys.argv[2], float(sys.argv[3]), sys.argv[4:]))
