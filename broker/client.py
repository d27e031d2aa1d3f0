"""The asyncio client: submit a batch, follow it, read its results, cancel it."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager

from broker.concurrency import Pacer, cancel_all
from broker.connection import BLOCK_S, RedisClient, connected
from broker.errors import UnknownBatchError
from broker.jobs import BatchCounts, Priority, Result, job_id
from broker.openai_batch import LineError, RequestLine
from broker.store.client import ClientStore, Registry
from broker.submission import SubmitOptions as SubmitOptions
from broker.submission import Submitted as Submitted
from broker.submission import Submitting
from broker.tenant_names import DEFAULT_TENANT, id_of_tenant

DEFAULT_OPTIONS = SubmitOptions()

#: Results read in one call.
_READ_RESULTS = 500
#: Whether a batch was sealed meanwhile is looked at this often (seconds).
_SEAL_LOOK_S = 0.25
_FROM_THE_FIRST: Mapping[str, str] = {}
#: What a reader of a pool hands over: a chunk and its pool, why it stopped, or its end.
_Read = tuple[str, list[Result]] | Exception | None


def new_batch_id(tenant: str = DEFAULT_TENANT) -> str:
    """A fresh id for a batch of this tenant; a tenant's ids sort by the time they were made. Nobody can guess one.

    Raises:
        UsageError: a tenant cannot be called so.
    """
    return id_of_tenant(tenant, f"batch_{int(time.time()):08x}{secrets.token_hex(8)}")


class Client:
    """A client of every pool on one Redis server. Make one with ``connect_client``."""

    def __init__(self, redis: RedisClient, result_ttl_s: int) -> None:
        self.redis = redis
        self._ttl = result_ttl_s
        self.registry = Registry(redis)
        self._stores: dict[str, ClientStore] = {}

    async def submit(
        self,
        requests: Iterable[RequestLine],
        batch_id: str,
        *,
        priority: Priority = Priority.NORMAL,
        source: str = "request",
        options: SubmitOptions = DEFAULT_OPTIONS,
    ) -> Submitted:
        """Queue requests of one batch, each in the pool that serves its model. Call ``seal`` after the last.

        A custom_id that the batch has already is the same job: nothing runs twice.

        Args:
            requests: any number; they are taken in chunks.
            batch_id: from ``new_batch_id``, or an earlier one to go on with.
            priority: level that they are served at.
            source: named in messages about refused requests.
            options: what to wait for, and the bounds of the jobs.

        Raises:
            UsageError: the batch is cancelled, or its completion window is over.
            QueueFullError: the backlog is full, and ``options`` say not to wait.
            NotDurableError: the server lost jobs meanwhile, or its disk is too slow.
        """
        models = await self.registry.models()
        refused: list[LineError] = []
        submission = self.submission(batch_id, priority, options)
        for request in requests:
            pool = models.get(request.model)
            if pool is None:
                refused.append(_unknown_model(request, sorted(models), source))
            else:
                await submission.add(pool, request)
        return await submission.finish(refused)

    def submission(
        self, batch_id: str, priority: Priority = Priority.NORMAL, options: SubmitOptions = DEFAULT_OPTIONS
    ) -> Submitting:
        """A submission that is fed by hand, for requests that come bit by bit; ``submit`` says what may be raised."""
        return Submitting(self.redis, self.store, batch_id, priority, options)

    async def seal(self, batch_id: str) -> None:
        """Say that the batch has all its requests: readers of results then know the end."""
        for pool in await self.pools_of(batch_id):
            await self.store(pool).seal(batch_id)

    async def cancel(self, batch_id: str) -> BatchCounts:
        """Cancel a batch; what runs is aborted, what waits ends as cancelled.

        Raises:
            UnknownBatchError: no pool has it.
        """
        pools = await self._require(batch_id)
        for pool in pools:
            await self.store(pool).cancel(batch_id)
        return await self.counts(batch_id)

    async def cancel_jobs(self, batch_id: str, custom_ids: Sequence[str]) -> int:
        """Cancel single jobs of a batch; what runs of them is aborted. Returns how many had not ended.

        Raises:
            UnknownBatchError: no pool has it.
        """
        pools = await self._require(batch_id)
        ids = [job_id(batch_id, custom_id) for custom_id in custom_ids]
        return sum([await self.store(pool).cancel_jobs(ids) for pool in pools])

    async def counts(self, batch_id: str) -> BatchCounts:
        """How far a batch is, over all pools it lies in.

        Raises:
            UnknownBatchError: no pool has it.
        """
        found = [await self.store(pool).counts(batch_id) for pool in await self._require(batch_id)]
        total = found[0]
        for counts in found[1:]:
            total = total + counts
        return total

    async def results(self, batch_id: str) -> AsyncGenerator[list[Result]]:
        """Ended jobs of a batch in the order in which they ended, in chunks, from the first to the last.

        Ends when the batch is sealed and every job was given out.

        Raises:
            UnknownBatchError: no pool has it.
        """
        async with aclosing(self.results_by_pool(batch_id)) as chunks:
            async for _, chunk in chunks:
                yield chunk

    async def results_by_pool(
        self, batch_id: str, after: Mapping[str, str] = _FROM_THE_FIRST
    ) -> AsyncGenerator[tuple[str, list[Result]]]:
        """As ``results``, each chunk with its pool; ``after``: pool -> cursor of the last result that one has.

        Raises:
            UnknownBatchError: no pool has it.
        """
        pools = await self._require(batch_id)
        queue: asyncio.Queue[_Read] = asyncio.Queue(maxsize=4)
        readers = [
            asyncio.ensure_future(_pump(self.store(pool), batch_id, after.get(pool, "0"), queue)) for pool in pools
        ]
        try:
            running = len(readers)
            while running:
                item = await queue.get()
                if item is None:
                    running -= 1
                elif isinstance(item, Exception):
                    raise item
                else:
                    yield item
        finally:
            await cancel_all(readers)

    async def forget(self, batch_id: str) -> None:
        """Delete a batch's results now, instead of after their time to live."""
        for pool in await self.pools_of(batch_id):
            await self.store(pool).forget(batch_id)

    async def pools_of(self, batch_id: str) -> list[str]:
        """Pools that have jobs of this batch."""
        pools = await self.registry.pools()
        return [p for p in pools if await self.redis.exists(self.store(p).keys.batch(batch_id))]

    def store(self, pool: str) -> ClientStore:
        """The pool as this client sees it."""
        if pool not in self._stores:
            self._stores[pool] = ClientStore(self.redis, pool, self._ttl)
        return self._stores[pool]

    async def _require(self, batch_id: str) -> list[str]:
        pools = await self.pools_of(batch_id)
        if not pools:
            raise UnknownBatchError(f"no batch {batch_id}: `tokenyard status` lists the ones there are")
        return pools


async def _pump(store: ClientStore, batch_id: str, after: str, queue: asyncio.Queue[_Read]) -> None:
    try:
        async for chunk in _results_of_pool(store, batch_id, after):
            await queue.put((store.keys.pool, chunk))
    except Exception as e:  # handed to the reader, who raises it
        await queue.put(e)
    else:
        await queue.put(None)


async def _results_of_pool(store: ClientStore, batch_id: str, after: str) -> AsyncGenerator[list[Result]]:
    pacer = Pacer()
    while True:
        await pacer.pause()
        chunk = await store.results(batch_id, after, limit=_READ_RESULTS, block=0)
        if not chunk:
            counts = await store.counts(batch_id)
            # A result may have come between the two looks; without it, wait only while the batch is not complete.
            # Its last result wakes us, the seal does not.
            wait_s = 0 if counts.complete else BLOCK_S if counts.sealed else _SEAL_LOOK_S
            chunk = await store.results(batch_id, after, limit=_READ_RESULTS, block=wait_s)
            if counts.complete and not chunk:
                return
        if chunk:
            after = chunk[-1].cursor
            yield chunk


def _unknown_model(request: RequestLine, served: Sequence[str], source: str) -> LineError:
    known = ", ".join(served) or "none: no worker has joined yet"
    return LineError(
        line=request.line,
        custom_id=request.custom_id,
        code="model_not_found",
        message=f"{source}:{request.line}: no pool serves model {request.model!r}; served here: {known}",
    )


@asynccontextmanager
async def connect_client(url: str, result_ttl_s: int = 7 * 86400) -> AsyncGenerator[Client]:
    """A client for the length of the block.

    Args:
        url: redis://, rediss:// or unix:// address.
        result_ttl_s: seconds that results are kept after their batch ended.

    Raises:
        RedisUnavailableError: nobody answers at that address.
        RedisRefusedError: it wants a password, or refuses.
    """
    async with connected(url) as redis:
        yield Client(redis, result_ttl_s)
