"""One pool with everyone who moves jobs in it, for tests of single moves."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from cluster_fixtures import CHAT, READY
from msgspec import structs

from broker.connection import connect
from broker.dead_letters import DeadLetter
from broker.jobs import Delivery, Outcome, Priority, Result, Submission, WaitingJob, job_id
from broker.keys import LEVELS
from broker.policies.base import Placement
from broker.store.client import Bounds, ClientStore
from broker.store.dead import DeadLetterStore
from broker.store.scheduler import SchedulerStore
from broker.store.worker import WorkerStore

TTL_S = 1000
BODY = b'{"model": "m", "messages": []}'


class Desk:
    """One pool, with everyone who moves jobs in it."""

    def __init__(self, redis: Any, pool: str) -> None:
        self.redis = redis
        self.pool = pool
        self.client = ClientStore(redis, pool, TTL_S)
        self.scheduler = self.scheduler_named("s")
        self.keys = self.client.keys

    def scheduler_named(self, owner: str, lease_ttl_s: float = 60) -> SchedulerStore:
        return SchedulerStore(self.redis, self.pool, owner, lease_ttl_s=lease_ttl_s, result_ttl_s=TTL_S)

    async def worker(
        self, name: str = "w", incarnation: str = "i1", max_attempts: int = 3, **fields: str
    ) -> WorkerStore:
        worker = self.worker_unregistered(name, max_attempts)
        await worker.register(incarnation, READY | fields, takeover=True)
        return worker

    def worker_unregistered(self, name: str = "w", max_attempts: int = 3) -> WorkerStore:
        return WorkerStore(self.redis, self.pool, name, result_ttl_s=TTL_S, dead_after_s=60, max_attempts=max_attempts)

    async def submit(self, *custom_ids: str, batch: str = "b", priority: Priority = Priority.NORMAL) -> int:
        jobs = [Submission(job_id(batch, c), c, CHAT, BODY, 7) for c in custom_ids]
        return await self.client.submit(batch, jobs, priority)

    async def waiting(self) -> list[WaitingJob]:
        """Jobs in the request streams, as the scheduler reads them."""
        new = [job for level in LEVELS for job in await self.scheduler.read_requests(level, 1000)]
        pending = [job for level in LEVELS for job in await self.scheduler.read_pending(level, 1000)]
        assert {job.job_id for job in new} <= {job.job_id for job in pending}
        return pending

    async def dispatch(self, worker: str = "w", jobs: Sequence[WaitingJob] | None = None) -> tuple[set[str], set[str]]:
        jobs = await self.waiting() if jobs is None else jobs
        return await self.scheduler.dispatch({worker: [Placement(job, 10, 20, worker) for job in jobs]})

    async def deliver(self, *custom_ids: str, worker: WorkerStore) -> list[Delivery]:
        """Submit jobs and bring them to a worker."""
        await self.submit(*custom_ids)
        await self.dispatch(worker.worker)
        return await worker.take(100)

    async def waiting_ids(self) -> list[str]:
        """The custom_ids of what waits."""
        found = [await self.redis.hget(self.keys.job(job.job_id), "custom_id") for job in await self.waiting()]
        return [custom_id.decode() for custom_id in found]

    async def results(self, batch: str = "b") -> list[Result]:
        return await self.client.results(batch, "0", limit=1000, block=0)

    async def depth(self, worker: str = "w") -> int:
        return await self.redis.xlen(self.keys.device(worker))


def ended(delivery: Delivery, status_code: int = 200, error_code: str = "") -> Outcome:
    """How a delivery ended."""
    return Outcome(delivery, status_code, b'{"object": "x"}', 10, 5, error_code, "why" if error_code else "")


def by_id(results: Sequence[Result]) -> dict[str, Result]:
    """Results by custom_id; there must be one for each."""
    assert len({r.custom_id for r in results}) == len(results)
    return {r.custom_id: r for r in results}


@asynccontextmanager
async def open_desk(url: str, pool: str) -> AsyncGenerator[Desk]:
    """A desk whose scheduler holds the lease."""
    redis = connect(url)
    desk = Desk(redis, pool)
    assert await desk.scheduler.hold_lease()
    await desk.scheduler.prepare()
    yield desk
    await redis.aclose()


@pytest.fixture(name="desk")
async def desk_fixture(any_redis_url: str, pool: str) -> AsyncIterator[Desk]:
    """A desk on each server."""
    async with open_desk(any_redis_url, pool) as opened:
        yield opened


def may_pass(delivery: Delivery, status_code: int = 500, retry_s: float = 1e-3) -> Outcome:
    """A failure that may pass; the job is due again at once, or as good as never."""
    return structs.replace(ended(delivery, status_code), retry_s=retry_s)


async def let_pass(desk: Desk) -> None:
    """All delays are over."""
    for job in await desk.redis.zrange(desk.keys.delayed, 0, -1):
        await desk.redis.zadd(desk.keys.delayed, {job: 1})
    await desk.scheduler.move_due()


async def letters(desk: Desk) -> dict[str, DeadLetter]:
    """By custom_id."""
    store = DeadLetterStore(desk.redis, desk.pool)
    found = await store.letters(await store.ids())
    return {letter.custom_id: letter for letter in found}


async def held_bytes(desk: Desk) -> int:
    return int(await desk.redis.get(desk.keys.held_bytes) or 0)


async def submit_within(desk: Desk, *custom_ids: str, batch: str = "b", **bounds: Any) -> int:
    jobs = [Submission(job_id(batch, c), c, CHAT, BODY, 7) for c in custom_ids]
    return await desk.client.submit(batch, jobs, Priority.NORMAL, Bounds(**bounds))


async def die(desk: Desk, worker: str = "w") -> None:
    assert await desk.scheduler.declare_dead(worker, silent_s=0, max_attempts=3) >= 0
