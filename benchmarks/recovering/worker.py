"""Our worker with an engine that runs the benchmark's job: ``python -m benchmarks.recovering.worker URL NAME``."""

from __future__ import annotations

import asyncio
import logging
import sys

import orjson

from benchmarks.chaotic.site import POOL
from benchmarks.peers.recovery_job import job
from benchmarks.requests import MODEL
from broker.connection import connected
from broker.settings import load_settings
from workers.engines.base import Capacity, EngineRequest, EngineResponse, Load
from workers.membership import Membership
from workers.worker import Worker

#: As many as arq and saq run at once.
SEATS = 10


class JobEngine:
    """Runs the job that a request's message names."""

    async def start(self) -> Capacity:
        """Nothing to load."""
        return Capacity("none", MODEL, kv_tokens=100_000, seats=SEATS, context_tokens=4096, version="1")

    async def run(self, request: EngineRequest) -> EngineResponse:
        """Run it."""
        name, seconds = orjson.loads(request.body)["messages"][0]["content"].split()
        await job(name, float(seconds))
        return EngineResponse(200, b'{"object": "done"}', 1, 1)

    def load(self) -> Load:
        """Of no interest."""
        return Load(0, 0, 0, 0, 0, 1 << 30)

    async def stop(self) -> None:
        """Nothing to free."""


async def main(url: str, name: str) -> None:
    """Work until killed."""
    async with connected(url) as redis:
        settings = load_settings(pool=POOL)
        member = Membership(redis, settings, name=name, engine_kind="job", models=[MODEL])
        await Worker(JobEngine(), member).run()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    asyncio.run(main(*sys.argv[1:]))
