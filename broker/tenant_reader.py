"""Reads the request streams of all tenants but the default one into the scheduler's windows."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from broker.concurrency import wait_at_most
from broker.jobs import WaitingJob
from broker.keys import FRESH_LEVELS, tenant_level
from broker.placement import Placer
from broker.store.tenants import TenantStore
from broker.window import Window

log = logging.getLogger(__name__)

#: Tenants that are read: the set of their names is one that any client can write to.
MOST_TENANTS = 1000
#: Streams and terms are looked at this often (seconds), and streams at once when somebody submits.
_LOOK_S = 1.0
#: But no more often than this (seconds).
_PAUSE_S = 0.02
_READ_JOBS = 500
#: Jobs that a tenant's window holds at least, of each priority.
_LEAST_WINDOW = 64

#: Takes jobs up, or ends those of cancelled batches.
TakeUp = Callable[[Sequence[WaitingJob]], Awaitable[None]]


class TenantReader:
    """One term's reading. ``wake`` is set when a tenant submits, or jobs have left the windows."""

    def __init__(
        self, store: TenantStore, placer: Placer, window_jobs: int, take_up: TakeUp, see: Callable[[bool], None]
    ) -> None:
        """Prepare; nothing is read yet.

        Args:
            store: the streams.
            placer: whose windows are filled.
            window_jobs: most jobs in all windows together, of each priority.
            take_up: what to do with jobs.
            see: told whether more waits than the windows hold.
        """
        self._store = store
        self._placer = placer
        self._window_jobs = window_jobs
        self._take_up = take_up
        self._see = see
        self._known: set[str] = set()
        self._problems: list[str] = []
        self.wake = asyncio.Event()

    async def first(self) -> None:
        """What was read before this term and not dispatched, then the first of what is new."""
        await self._read_terms()
        await self._look()

    async def run(self) -> None:
        """For ever."""
        now = asyncio.get_running_loop().time
        terms_at = now()
        while True:
            await wait_at_most(self.wake, _LOOK_S)
            self.wake.clear()
            if now() - terms_at >= _LOOK_S:
                await self._read_terms()
                terms_at = now()
            await self._look()
            if self._known:
                await asyncio.sleep(_PAUSE_S)

    async def _read_terms(self) -> None:
        terms, problems = await self._store.terms()
        for problem in problems:
            if problem not in self._problems:
                log.warning("pool %s: terms of tenant %s: it has weight 1 and no cap", self._store.pool, problem)
        self._problems = problems
        self._placer.tenants.ledger.terms = terms

    async def _look(self) -> None:
        tenants = await self._store.tenants(MOST_TENANTS)
        for tenant in tenants - self._known:
            await self._adopt(tenant)
        self._known = tenants
        more = False
        waiting = await self._store.lengths(sorted(tenants))
        for tenant in waiting:
            more |= await self._read(tenant, waiting[tenant])
            if not any(waiting[tenant].values()) and await self._store.drop(tenant):
                self._known.discard(tenant)
        self._see(more)

    async def _adopt(self, tenant: str) -> None:
        await self._store.prepare(tenant)
        for level in FRESH_LEVELS:
            jobs = await self._store.read_pending(tenant_level(level, tenant), _READ_JOBS)
            for start in range(0, len(jobs), _READ_JOBS):
                await self._take_up(jobs[start : start + _READ_JOBS])

    async def _read(self, tenant: str, waiting: dict[str, int]) -> bool:
        """Fill a tenant's window; whether more waits."""
        share = max(self._window_jobs // max(len(self._known), 1), _LEAST_WINDOW)
        more = False
        for level, entries in waiting.items():
            window = self._placer.tenants.windows.get(tenant) or Window()
            held = window.count(level)
            while entries > held and held < share:
                limit = min(share - held, _READ_JOBS)
                jobs = await self._store.read_requests(tenant_level(level, tenant), limit)
                await self._take_up(jobs)
                held += limit
                if len(jobs) < limit:
                    break
            more |= entries > share
        return more
