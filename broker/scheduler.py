"""The scheduler of one pool: stand by until the lease is free, then lead."""

from __future__ import annotations

import asyncio
import logging
import random
from contextlib import suppress

from broker.connection import PASSING, RedisClient, keep_trying
from broker.errors import LeaseLostError
from broker.heartbeat import LOOK_S
from broker.leadership import Leadership
from broker.policies import make_policy
from broker.scheduler_stats import SchedulerStats
from broker.settings import Settings
from broker.silence import Silences
from broker.store.tenants import TenantStore

log = logging.getLogger(__name__)


class Scheduler:
    """Serves one pool for ever; several may run, one leads."""

    def __init__(self, redis: RedisClient, pool: str, settings: Settings, *, owner: str, rng: random.Random) -> None:
        make_policy(settings.policy)  # a wrong name shows at once, not when the lease comes
        self._settings = settings
        self._rng = rng
        self._store = TenantStore(
            redis, pool, owner, lease_ttl_s=settings.lease_ttl_s, result_ttl_s=settings.result_ttl_s
        )
        self._silences = Silences(2 * LOOK_S)  # outlives terms, and outages of Redis
        self.pool = pool
        self.stats = SchedulerStats()

    async def run(self) -> None:
        """Stand by, lead, and stand by again, until cancelled. Redis may come and go."""
        try:
            await keep_trying(self._serve, lambda text: log.warning("pool %s: %s", self.pool, text))
        finally:
            with suppress(*PASSING, TimeoutError):
                async with asyncio.timeout(1):
                    await self._store.release_lease()

    async def _serve(self) -> None:
        self._silences.interrupt()
        while True:
            while not await self._store.hold_lease():
                await self._listen()
                await asyncio.sleep(self._settings.lease_ttl_s / 3)
            log.info("pool %s: leading with epoch %d, policy %s", self.pool, self._store.epoch, self._settings.policy)
            try:
                await Leadership(self._store, self._settings, self._rng, self.stats, self._silences).run()
            except LeaseLostError as e:
                log.warning("%s; standing by", e)

    async def _listen(self) -> None:
        """Standing by, hear the workers: one that died before the leader did is known to be silent when we lead."""
        beats = await self._store.heartbeats()
        self._silences.look(asyncio.get_running_loop().time())
        self._silences.keep_only(beats)
        for name, beat in beats.items():
            if beat is not None:
                self._silences.of(name, beat.seen)
