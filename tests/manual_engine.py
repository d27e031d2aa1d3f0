"""Engines for tests: one whose requests end when the test says, and one that takes no time."""

from __future__ import annotations

import asyncio

from workers.engines.base import Capacity, EngineRequest, EngineResponse, EngineUnavailableError, Load
from workers.engines.simulated import INSTANT, SimulatedEngine, SimulatedOptions


class ManualEngine:
    """An engine whose requests end when the test says."""

    def __init__(self, *, seats: int = 4, kv_tokens: int = 1_000_000) -> None:
        self.capacity = Capacity("test device", "", kv_tokens, seats, 100_000, "manual 1")
        self.running: dict[str, asyncio.Future[EngineResponse]] = {}
        self.started: list[str] = []
        self.aborted: list[str] = []
        self.most_running = 0
        self.starts = 0

    async def start(self) -> Capacity:
        self.starts += 1
        return self.capacity

    async def run(self, request: EngineRequest) -> EngineResponse:
        future: asyncio.Future[EngineResponse] = asyncio.get_running_loop().create_future()
        self.running[request.job_id] = future
        self.started.append(request.job_id)
        self.most_running = max(self.most_running, len(self.running))
        try:
            return await future
        except asyncio.CancelledError:
            self.aborted.append(request.job_id)
            raise
        finally:
            del self.running[request.job_id]

    def finish(self, count: int | None = None, status_code: int = 200) -> None:
        """End the oldest ``count`` requests, or all."""
        for future in [f for f in self.running.values() if not f.done()][:count]:
            future.set_result(EngineResponse(status_code, b'{"object": "made up"}', 10, 5))

    def die(self) -> None:
        """Fail everything that runs, as an engine whose process died."""
        for future in self.running.values():
            if not future.done():
                future.set_exception(EngineUnavailableError("the test killed it"))

    def load(self) -> Load:
        return Load(len(self.running), 0, 15 * len(self.running), 0, 0, 1 << 30)

    async def stop(self) -> None:
        self.die()


def instant_engine(model: str) -> SimulatedEngine:
    """An engine that takes no time."""
    return SimulatedEngine(SimulatedOptions(profile=INSTANT, models=(model,)))
