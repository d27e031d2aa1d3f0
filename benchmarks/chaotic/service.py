"""Whether the pool serves: what probes see in Redis, while it comes and goes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import redis.exceptions as rex

from benchmarks.chaotic.site import POOL
from broker.keys import PoolKeys
from broker.store.monitor import MonitorStore

#: A fault that has not been recovered from within so many seconds counts as never.
PATIENCE_S = 90.0
_LOOK_S = 0.05


#: Streams, each with its newest entry. Clocks jump, and a stream may begin anew: only that it is another one counts.
Newest = frozenset[tuple[str, bytes]]


@dataclass(frozen=True, slots=True)
class Flow:
    """What the pool does: the newest entries of the device queues, and of the results."""

    dispatched: Newest
    completed: Newest

    def goes_on_since(self, before: Flow) -> bool:
        """Whether a job was dispatched and one completed meanwhile."""
        return bool(self.dispatched - before.dispatched) and bool(self.completed - before.completed)


class Service:
    """Looks at the pool through a connection of its own."""

    def __init__(self, client: Any, workers: Iterable[str], batches: Iterable[str]) -> None:
        self.keys = PoolKeys(POOL)
        self.monitor = MonitorStore(client, POOL)
        self.client = client
        self._workers = list(workers)
        self._batches = list(batches)

    async def flow(self) -> Flow:
        """What the newest dispatched and the newest completed job are."""
        queues = [self.keys.device(name) for name in self._workers]
        results = [self.keys.results(name) for name in self._batches]
        return Flow(await self._newest(queues), await self._newest(results))

    async def bound(self, worker: str) -> dict[str, str]:
        """Jobs bound to a worker: job -> entry."""
        with suppress(rex.RedisError, OSError):
            found = await self.client.xrange(self.keys.device(worker))
            return {fields[b"job"].decode(): entry.decode() for entry, fields in found if b"job" in fields}
        return {}

    async def still_bound(self, worker: str, bound: dict[str, str]) -> bool:
        """Whether one of these jobs still is in that queue, as that entry."""
        now = await self.bound_now(worker)
        return any(now.get(job) == entry for job, entry in bound.items())

    async def bound_now(self, worker: str) -> dict[str, str]:
        """As ``bound``, but an outage is an error."""
        found = await self.client.xrange(self.keys.device(worker))
        return {fields[b"job"].decode(): entry.decode() for entry, fields in found if b"job" in fields}

    async def ended(self, batch: str) -> int:
        """Jobs of a batch that have ended; 0 where Redis is away."""
        with suppress(rex.RedisError, OSError):
            return sum(int(n or 0) for n in await self.client.hmget(self.keys.batch(batch), "done", "failed"))
        return 0

    async def seconds_until(self, look: Callable[[], Awaitable[bool]], since: float) -> float | None:
        """Seconds from ``since`` (monotonic) until ``look`` says yes; None where it did not in time."""
        while time.monotonic() < since + PATIENCE_S:
            with suppress(rex.RedisError, OSError):
                if await look():
                    return time.monotonic() - since
            await asyncio.sleep(_LOOK_S)
        return None

    async def _newest(self, streams: list[str]) -> Newest:
        pipe = self.client.pipeline(transaction=False)
        for stream in streams:
            pipe.xinfo_stream(stream)
        answers = await pipe.execute(raise_on_error=False)
        if any(isinstance(answer, rex.ConnectionError) for answer in answers):
            raise rex.ConnectionError("away")
        newest = {s: a["last-generated-id"] for s, a in zip(streams, answers, strict=True) if isinstance(a, dict)}
        return frozenset((stream, entry) for stream, entry in newest.items() if entry != b"0-0")
