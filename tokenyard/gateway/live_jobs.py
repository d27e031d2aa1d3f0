"""Single requests that somebody waits for: each a job of the queue, with one reader for all of a tenant's in a pool.

They share a batch of the queue, so that one blocking read hears of all of them. A batch takes requests for a while, is
sealed, and is forgotten when its last one has ended.
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial

from broker.client import Client, new_batch_id
from broker.concurrency import cancel_all
from broker.connection import BLOCK_S, RedisError, keep_trying
from broker.errors import RedisUnavailableError
from broker.jobs import Priority, Result, Submission, job_id
from broker.openai_batch import RequestLine
from broker.store.client import Bounds
from broker.store.live import LivePosition, read_live
from broker.trace_context import checked_traceparent
from tokenyard.gateway.handing_out import HandingOut
from tokenyard.gateway.live_job import LiveJob

log = logging.getLogger(__name__)

#: A batch takes so many requests, or for so long (seconds).
_MOST_REQUESTS = 2000
_LONGEST_S = 300.0


class _LiveBatch:
    """One batch of the queue, and its reader."""

    def __init__(self, client: Client, pool: str, tenant: str) -> None:
        self.store = client.store(pool)
        self.batch_id = new_batch_id(tenant)
        self.jobs: dict[str, LiveJob] = {}
        self.requests = 0
        self.sealed = asyncio.Event()
        self._client = client
        self._until = asyncio.get_running_loop().time() + _LONGEST_S
        self._position = LivePosition()
        self._leaving: set[asyncio.Task[None]] = set()
        self._out = HandingOut(self._end)

    @property
    def takes_more(self) -> bool:
        """Whether another request may join."""
        in_time = asyncio.get_running_loop().time() < self._until
        return in_time and self.requests < _MOST_REQUESTS and not self.sealed.is_set()

    async def submit(
        self, request: RequestLine, priority: Priority, bounds: Bounds, *, follow: bool, traceparent: str
    ) -> LiveJob:
        """Queue a request.

        Raises:
            QueueFullError: there is no room.
        """
        self.requests += 1
        custom_id = f"live-{self.requests}"
        identity = job_id(self.batch_id, custom_id)
        job = LiveJob(identity, asyncio.get_running_loop().create_future(), partial(self._drop, identity))
        self.jobs[identity] = job
        body, max_tokens, prefix = request.body, request.max_tokens, request.prefix
        submission = Submission(identity, custom_id, request.url, body, max_tokens, prefix, follow, traceparent)
        try:
            await self.store.submit(self.batch_id, [submission], priority, bounds)
        except BaseException:
            self.jobs.pop(identity, None)
            raise
        return job

    def _drop(self, identity: str) -> None:
        """In a task of its own: whoever leaves may be cancelled just now, and could await nothing."""
        if self.jobs.pop(identity, None) is not None:
            leaving = asyncio.ensure_future(self._abort(identity))
            self._leaving.add(leaving)
            leaving.add_done_callback(self._leaving.discard)

    async def _abort(self, identity: str) -> None:
        try:
            await self.store.cancel_jobs([identity])
        except (RedisError, OSError) as error:
            log.warning("job %s goes on though nobody waits for it: %s", identity, error)

    async def read(self) -> None:
        """Hand out news and results until the batch is sealed and nobody waits."""
        while self.jobs or not self.sealed.is_set():
            news = await read_live(self._client.redis, self.store.keys, self.batch_id, self._position, BLOCK_S)
            self._position = news.position
            await self._out.take(self.jobs, news)
            if not self.takes_more:
                await self._out.done()
                if not self.jobs:
                    self.sealed.set()

    def _end(self, result: Result) -> None:
        job = self.jobs.pop(result.job_id, None)
        if job is not None and not job.result.done():
            job.result.set_result(result)
            job.wake()

    async def close(self) -> None:
        """End it: what still runs is aborted, nothing of it stays in Redis for long."""
        self.sealed.set()
        await self._out.close()
        left, self.jobs = self.jobs, {}
        for job in left.values():
            if not job.result.done():
                job.result.set_exception(RedisUnavailableError("the gateway stopped following this request: ask again"))
                job.wake()
        await asyncio.gather(*self._leaving)
        if left:
            await self.store.cancel_jobs(list(left))
        await self.store.seal(self.batch_id)
        if not left:
            await self.store.forget(self.batch_id)


class LiveJobs:
    """All requests of this gateway that somebody waits for. Used from one event loop."""

    def __init__(self, client: Client, bounds: Bounds) -> None:
        self._client = client
        self._bounds = bounds
        self._open: dict[tuple[str, str], _LiveBatch] = {}
        self._readers: set[asyncio.Task[None]] = set()
        self._batches: set[_LiveBatch] = set()

    async def submit(
        self,
        request: RequestLine,
        pool: str,
        tenant: str,
        *,
        follow: bool = False,
        priority: Priority = Priority.HIGH,
        traceparent: str = "",
    ) -> LiveJob:
        """Queue a request.

        Args:
            request: what to run.
            pool: where its model is served.
            tenant: whose it is.
            follow: whether its tokens are wanted while they are made.
            priority: level that it is served at.
            traceparent: span of whoever asks (see ``broker.trace_context``); what is no such header is ignored.

        Raises:
            QueueFullError: there is no room.
        """
        caller = checked_traceparent(traceparent)
        batch = self._batch(pool, tenant)
        return await batch.submit(request, priority, self._bounds, follow=follow, traceparent=caller)

    @property
    def waiting(self) -> int:
        """Requests that somebody waits for."""
        return sum(len(batch.jobs) for batch in self._batches)

    async def close(self) -> None:
        """Abort what is under way."""
        await cancel_all(list(self._readers))

    def _batch(self, pool: str, tenant: str) -> _LiveBatch:
        batch = self._open.get((pool, tenant))
        if batch is None or not batch.takes_more:
            batch = _LiveBatch(self._client, pool, tenant)
            self._open[pool, tenant] = batch
            reader = asyncio.ensure_future(self._follow(batch))
            self._readers.add(reader)
            reader.add_done_callback(self._readers.discard)
        return batch

    async def _follow(self, batch: _LiveBatch) -> None:
        """A batch from its first request to its end, while Redis comes and goes."""
        self._batches.add(batch)
        try:
            await keep_trying(batch.read, log.warning)
        except Exception as error:  # who waits is told, in ``close``
            log.error("batch %s cannot be followed: %s", batch.batch_id, error)
        finally:
            batch.sealed.set()
            await _quietly(batch)
            self._batches.discard(batch)


async def _quietly(batch: _LiveBatch) -> None:
    try:
        async with asyncio.timeout(5):
            await batch.close()
    except Exception as error:  # results have a time to live: they go by themselves
        log.warning("batch %s could not be cleared away: %s", batch.batch_id, error)
