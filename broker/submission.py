"""How a client submits: what it waits for, and what bounds its jobs."""

from __future__ import annotations

import asyncio
import random
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from broker.connection import RedisClient, RedisError, out_of_memory
from broker.errors import NotDurableError, QueueFullError
from broker.jobs import Priority, Submission, job_id
from broker.openai_batch import LineError, RequestLine
from broker.store.client import Bounds, ClientStore
from broker.store.durability import on_disk
from broker.trace_context import checked_traceparent

#: A call to Redis carries at most this many jobs and about this many bytes.
_CHUNK_JOBS = 250
_CHUNK_BYTES = 2 * 2**20

#: While there is no room, one looks again after this long, doubled each time up to the longest (seconds).
_FIRST_S = 0.05
_LONGEST_S = 1.0


def _say_nothing(_text: str) -> None:
    pass


@dataclass(frozen=True, slots=True)
class SubmitOptions:
    """How to submit.

    Attributes:
        durable: return only after the server said that the jobs are on disk; where it cannot say so, ``Submitted``
            has what is promised instead.
        durable_replicas: and only after so many replicas of the server have them, too (with ``durable``).
        wait: where the backlog is full, or Redis' memory, wait until there is room; without, that is an error.
        max_backlog_jobs: most jobs that may wait in a pool, 0 for any number.
        max_backlog_bytes: most bytes of requests that a pool may hold, 0 for any number.
        timeout_s: seconds that an attempt of a job may run, 0 for any time.
        completion_window_s: seconds after which what has not ended of the batch expires, 0 for never. Counted from
            the batch's first job; it cannot be changed later.
        traceparent: span of whoever submits, for all jobs; what is no such header is ignored.
        report: told in one line that it waits.
    """

    durable: bool = False
    durable_replicas: int = 0
    wait: bool = True
    max_backlog_jobs: int = 0
    max_backlog_bytes: int = 0
    timeout_s: float = 0.0
    completion_window_s: float = 0.0
    traceparent: str = ""
    report: Callable[[str], None] = _say_nothing

    @property
    def bounds(self) -> Bounds:
        """What Redis is told."""
        return Bounds(self.max_backlog_jobs, self.max_backlog_bytes, self.timeout_s, self.completion_window_s)


@dataclass(slots=True)
class Submitted:
    """What became of the requests handed in.

    Attributes:
        accepted: jobs that are new in the queue.
        known: jobs that were there before.
        refused: requests whose model nobody serves.
        on_disk: whether the server said that the jobs are on disk.
        replicas: so many of its replicas have said that they have them, too.
        promise: where it was asked and cannot say so: one line on what is promised instead.
    """

    accepted: int = 0
    known: int = 0
    refused: list[LineError] = field(default_factory=list[LineError])
    on_disk: bool = False
    replicas: int = 0
    promise: str = ""


@dataclass(slots=True)
class _Chunk:
    jobs: list[Submission] = field(default_factory=list[Submission])
    size: int = 0

    def full(self) -> bool:
        return len(self.jobs) >= _CHUNK_JOBS or self.size >= _CHUNK_BYTES


class Submitting:
    """One submission: requests of a batch on their way into the queue, in chunks, each pool's by themselves."""

    def __init__(
        self,
        redis: RedisClient,
        store_of: Callable[[str], ClientStore],
        batch_id: str,
        priority: Priority,
        options: SubmitOptions,
    ) -> None:
        self._redis = redis
        self._store_of = store_of
        self._batch_id = batch_id
        self._priority = priority
        self._options = options
        self._traceparent = checked_traceparent(options.traceparent)
        self._chunks: dict[str, _Chunk] = {}
        self._counts: defaultdict[str, Counter[str]] = defaultdict(Counter)

    async def add(self, pool: str, request: RequestLine) -> None:
        """Queue a request, once there are enough for a call."""
        chunk = self._chunks.setdefault(pool, _Chunk())
        identity = job_id(self._batch_id, request.custom_id)
        body, max_tokens, prefix, caller = request.body, request.max_tokens, request.prefix, self._traceparent
        chunk.jobs.append(
            Submission(identity, request.custom_id, request.url, body, max_tokens, prefix, traceparent=caller)
        )
        chunk.size += len(request.body)
        if chunk.full():
            await self._send(pool, self._chunks.pop(pool))

    async def finish(self, refused: list[LineError]) -> Submitted:
        """Queue the last, and see to it that all are safe where that was asked for.

        Raises:
            NotDurableError: the server lost some of them meanwhile, or its disk is too slow.
        """
        for pool, chunk in self._chunks.items():
            await self._send(pool, chunk)
        counts = self._counts.values()
        promise = await self._make_sure() if self._options.durable else ""
        return Submitted(
            accepted=sum(count["accepted"] for count in counts),
            known=sum(count["known"] for count in counts),
            refused=refused,
            on_disk=self._options.durable and not promise,
            replicas=self._options.durable_replicas if self._options.durable else 0,
            promise=promise,
        )

    async def _send(self, pool: str, chunk: _Chunk) -> None:
        store, options = self._store_of(pool), self._options
        new = await send_when_there_is_room(
            lambda: store.submit(self._batch_id, chunk.jobs, self._priority, options.bounds), options
        )
        self._counts[pool].update(accepted=new, known=len(chunk.jobs) - new)

    async def _make_sure(self) -> str:
        """All jobs are on disk; or the answer is what is promised instead."""
        promise, replicas = "", self._options.durable_replicas
        for pool, count in self._counts.items():
            store = self._store_of(pool)
            promise = await on_disk(self._redis, store.keys.fence, replicas) or promise
            if await store.total(self._batch_id) < count["accepted"]:
                raise NotDurableError(
                    f"Redis lost jobs of batch {self._batch_id} while they were submitted (it came back with older"
                    " data): submit the same requests to that batch again; nothing runs twice"
                )
        return promise


async def send_when_there_is_room(send: Callable[[], Awaitable[int]], options: SubmitOptions) -> int:
    """Send jobs, as often as it takes where ``options.wait`` says so.

    Raises:
        QueueFullError: the backlog is full, and one does not want to wait.
    """
    delay, told = _FIRST_S, False
    while True:
        try:
            return await send()
        except QueueFullError as e:
            if not options.wait:
                raise
            problem = str(e).partition(":")[0]
        except RedisError as e:
            if not (options.wait and out_of_memory(e)):
                raise
            problem = "Redis is out of memory (maxmemory)"
        if not told:
            options.report(f"{problem}; waiting until there is room")
            told = True
        await asyncio.sleep(random.uniform(delay / 2, delay))
        delay = min(2 * delay, _LONGEST_S)
