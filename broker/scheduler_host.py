"""One process that schedules many pools: a scheduler for each pool there is, and for each that comes."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Sequence

from broker.concurrency import cancel_all
from broker.connection import RedisClient, keep_trying
from broker.scheduler import Scheduler
from broker.scheduler_stats import SchedulerStats
from broker.settings import Settings
from broker.store.client import Registry

log = logging.getLogger(__name__)

#: New pools are looked for this often (seconds).
_LOOK_S = 1.0


class SchedulerHost:
    """Runs until cancelled. ``pools`` limits it to those; otherwise it serves every pool of the server."""

    def __init__(self, redis: RedisClient, settings: Settings, *, owner: str, pools: Sequence[str] = ()) -> None:
        self._redis = redis
        self._settings = settings
        self._owner = owner
        self._wanted = tuple(pools)
        self._running: dict[str, asyncio.Task[None]] = {}
        self.stats: dict[str, SchedulerStats] = {}  # by pool
        self._failed: asyncio.Future[None] | None = None

    async def run(self) -> None:
        """Serve pools as they come; an error that does not pass by itself ends it."""
        self._failed = asyncio.get_running_loop().create_future()
        watch = asyncio.ensure_future(keep_trying(self._watch, log.warning))
        try:
            await asyncio.wait([watch, self._failed], return_when=asyncio.FIRST_COMPLETED)
            for ended in (watch, self._failed):
                if ended.done():
                    ended.result()
        finally:
            await cancel_all([watch, *self._running.values()])

    async def _watch(self) -> None:
        registry = Registry(self._redis)
        while True:
            for pool in self._wanted or await registry.pools():
                if pool not in self._running:
                    self._start(pool)
            await asyncio.sleep(_LOOK_S)

    def _start(self, pool: str) -> None:
        scheduler = Scheduler(self._redis, pool, self._settings, owner=self._owner, rng=random.Random())
        self.stats[pool] = scheduler.stats
        task = asyncio.ensure_future(scheduler.run())
        task.add_done_callback(self._ended)
        self._running[pool] = task

    def _ended(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None and self._failed is not None and not self._failed.done():
            self._failed.set_exception(error)
