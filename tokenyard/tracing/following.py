"""Follows what happens in all pools, and finds the results of the jobs that are to be traced."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

from broker.client import Client
from broker.concurrency import cancel_all
from broker.connection import keep_trying
from broker.events import Completed, Event, Returned, Withdrawn, parse_event
from broker.job_record import batch_of
from broker.jobs import Result
from broker.store.monitor import MonitorStore

log = logging.getLogger(__name__)

#: New pools are looked for this often (seconds).
_LOOK_S = 1.0
#: Jobs that are not told again.
_REMEMBERED = 10_000

#: Takes the results of jobs that have ended, and their pool.
Sink = Callable[[Sequence[Result], str], None]


class JobFollower:
    """Reads beside the queue, which does nothing for it and never waits for it.

    Jobs that ended while nobody looked, and those of a cancelled batch that waited, are not seen.
    """

    def __init__(self, client: Client, wanted: Callable[[str], bool], sink: Sink) -> None:
        """Args:
        client: of the server.
        wanted: whether a job of this id is to be told.
        sink: takes what has ended.
        """
        self._client = client
        self._wanted = wanted
        self._sink = sink
        self._pools: dict[str, asyncio.Task[None]] = {}
        self.following: set[str] = set()
        self._told: dict[str, None] = {}  # the latest

    async def run(self) -> None:
        """Follow all pools there are and each that comes, until cancelled. Redis may come and go."""
        try:
            await keep_trying(self._watch, log.warning)
        finally:
            await cancel_all(list(self._pools.values()))

    async def _watch(self) -> None:
        while True:
            for task in self._pools.values():
                if task.done():
                    task.result()  # an error that does not pass
            for pool in await self._client.registry.pools():
                if pool not in self._pools:
                    self._pools[pool] = asyncio.ensure_future(self._follow(pool))
            await asyncio.sleep(_LOOK_S)

    async def _follow(self, pool: str) -> None:
        monitor = MonitorStore(self._client.redis, pool)
        position = ""

        async def read_on() -> None:
            nonlocal position
            position = position or await monitor.last_event()
            if pool not in self.following:
                log.info("following pool %s", pool)
            self.following.add(pool)
            while True:
                jobs: list[str] = []
                latest = position
                for latest, fields in await monitor.events(position):  # noqa: B007  the last is kept
                    jobs += _jobs_of(parse_event(fields))
                await self._tell(pool, [job for job in dict.fromkeys(jobs) if self._wanted(job)])
                position = latest

        await keep_trying(read_on, log.warning)

    async def _tell(self, pool: str, jobs: Iterable[str]) -> None:
        """Those of the jobs that have ended."""
        store = self._client.store(pool)
        by_batch: dict[str, list[str]] = defaultdict(list)
        for job in jobs:
            if job in self._told:
                continue
            by_batch[batch_of(job)].append(job)
        for batch, of_batch in by_batch.items():
            cursors = [cursor for cursor in await store.cursors(of_batch) if cursor is not None]
            if results := await store.results_at(batch, cursors):
                self._sink(results, pool)
                self._remember(result.job_id for result in results)

    def _remember(self, jobs: Iterable[str]) -> None:
        """A job that went back before it ended is named by several events."""
        self._told.update(dict.fromkeys(jobs))
        while len(self._told) > _REMEMBERED:
            del self._told[next(iter(self._told))]


def _jobs_of(event: Event | None) -> Iterable[str]:
    """Jobs that may have ended."""
    match event:
        case Completed(_, jobs):
            return jobs.keys()
        case Returned(_, jobs) | Withdrawn(jobs):
            return jobs
        case _:
            return ()
