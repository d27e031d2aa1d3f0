"""What a client does: register and find pools, submit, read results, cancel."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple

from redis.exceptions import ResponseError

from broker import keys, scripts
from broker.connection import RedisClient
from broker.errors import QueueFullError, UnknownBatchError, UsageError
from broker.job_record import batch_of, cursor_before, short_id
from broker.jobs import BatchCounts, Priority, Result, Submission
from broker.result_record import parse_counts, parse_result
from broker.tenant_names import DEFAULT_TENANT, tenant_of

log = logging.getLogger(__name__)

#: A larger max_tokens means the same; Lua writes numbers above 10^17 in a form that is no integer.
_MOST_TOKENS = 10**9
#: Answers of submit.lua.
_FULL = -2
_EXPIRED = -3
#: Entries that are no results: so many are remembered, so as to name them once.
_MOST_TOLD = 10_000


class Bounds(NamedTuple):
    """What a submission keeps to; 0 is no bound.

    Attributes:
        max_jobs: most jobs that may wait in the pool.
        max_bytes: most bytes of requests that the pool may hold, running ones included.
        timeout_s: seconds that each of the jobs may run.
        completion_window_s: seconds from its first job on after which the batch expires.
    """

    max_jobs: int = 0
    max_bytes: int = 0
    timeout_s: float = 0.0
    completion_window_s: float = 0.0


class Registry:
    """Which pools there are and which models they serve."""

    def __init__(self, redis: RedisClient) -> None:
        self._redis = redis

    async def add_pool(self, pool: str, models: Sequence[str]) -> None:
        """Make ``pool`` the one that serves these model names.

        Raises:
            UsageError: another pool serves one of them.
        """
        for model in models:
            owner = await self._redis.hget(keys.MODELS, model)  # read first: a full Redis refuses any write
            if owner is None:
                await self._redis.hsetnx(keys.MODELS, model, pool)
                owner = await self._redis.hget(keys.MODELS, model)
            owner = _text(owner or b"")
            if owner != pool:
                raise UsageError(
                    f"model {model!r} is served by pool {owner!r}; use --pool {owner} or another model name"
                )
        if not await self._redis.sismember(keys.POOLS, pool):
            await self._redis.sadd(keys.POOLS, pool)

    async def pools(self) -> list[str]:
        """Names of all pools, sorted."""
        return sorted(filter(keys.is_pool, map(_text, await self._redis.smembers(keys.POOLS))))

    async def models(self) -> dict[str, str]:
        """Model name -> pool."""
        found = await self._redis.hgetall(keys.MODELS)
        served = {_text(model): _text(pool) for model, pool in found.items()}
        return {model: pool for model, pool in served.items() if model.isprintable() and keys.is_pool(pool)}


NO_BOUNDS = Bounds()


def _text(name: bytes) -> str:
    """A name (anyone can write to Redis)."""
    return name[:1024].decode(errors="replace")


class ClientStore:
    """One pool as a client sees it."""

    def __init__(self, redis: RedisClient, pool: str, result_ttl_s: int) -> None:
        self._redis = redis
        self.keys = keys.PoolKeys(pool)
        self._ttl = result_ttl_s
        self._submit = scripts.load(redis, "submit")
        self._told: set[bytes] = set()  # entries that are no results
        self._seal = scripts.load(redis, "seal")
        self._cancel = scripts.load(redis, "cancel")
        self._cancel_jobs = scripts.load(redis, "cancel_jobs")

    async def submit(
        self, batch_id: str, jobs: Sequence[Submission], priority: Priority, bounds: Bounds = NO_BOUNDS
    ) -> int:
        """Put jobs into the queue, all or none; at most some hundreds a call.

        Returns:
            How many were new; the rest were there already.

        Raises:
            UsageError: the batch is cancelled, or its completion window is over.
            QueueFullError: the backlog has no room for them.
        """
        rows = [
            (
                *(j.job_id, j.custom_id, j.url, scripts.text(j.body), min(j.max_tokens, _MOST_TOKENS), j.prefix),
                *((j.follow, j.traceparent) if j.traceparent else (True,) if j.follow else ()),
            )
            for j in jobs
        ]
        args = [self.keys.prefix, batch_id, priority.value, scripts.pack(rows), *map(_plain, bounds)]
        tenant = tenant_of(batch_id)
        args.append("" if tenant == DEFAULT_TENANT else tenant)
        new = int(await self._submit(args=args))
        if new == _FULL:
            raise QueueFullError(
                f"the backlog of pool {self.keys.pool} is full ({bounds.max_jobs:,} jobs or {bounds.max_bytes:,}"
                " bytes): submit again later, or raise TOKENYARD_MAX_BACKLOG_JOBS and TOKENYARD_MAX_BACKLOG_BYTES"
            )
        if new < 0:
            why = "is over: its completion window has passed" if new == _EXPIRED else "is cancelled"
            raise UsageError(f"batch {batch_id} {why}; submit to a new one")
        return new

    async def seal(self, batch_id: str) -> None:
        """Say that the batch has all its jobs."""
        await self._seal(args=[self.keys.prefix, batch_id, self._ttl])

    async def cancel(self, batch_id: str) -> bool:
        """Cancel a batch; what runs is aborted by its worker. False where there is none of that id."""
        return bool(await self._cancel(args=[self.keys.prefix, batch_id]))

    async def cancel_jobs(self, job_ids: Sequence[str]) -> int:
        """Cancel single jobs; what runs is aborted by its worker. Returns how many had not ended."""
        return int(await self._cancel_jobs(args=[self.keys.prefix, self._ttl, *job_ids]))

    async def total(self, batch_id: str) -> int:
        """Jobs that the batch ever had in this pool; 0 where there is none of that id."""
        return int(await self._redis.hget(self.keys.batch(batch_id), "total") or 0)

    async def counts(self, batch_id: str) -> BatchCounts:
        """How far the batch is.

        Raises:
            UnknownBatchError: there is none of that id in this pool.
        """
        raw = await self._redis.hgetall(self.keys.batch(batch_id))
        if not raw:
            raise UnknownBatchError(f"no batch {batch_id}: `tokenyard status` lists the ones there are")
        return parse_counts(raw)

    async def results(self, batch_id: str, after: str, *, limit: int, block: float) -> list[Result]:
        """Ended jobs of the batch after cursor ``after`` ("0" for all), oldest first.

        Where there are none, waits up to ``block`` seconds (0: not at all).
        """
        key = self.keys.results(batch_id)
        while True:
            found = await self._redis.xread({key: after}, count=limit, block=int(block * 1000) or None)
            entries = found[0][1] if found else []
            read = [(entry, parse_result(entry, fields)) for entry, fields in entries]
            results = [result for _, result in read if result]
            if len(results) < len(read):
                self._tell_of_bad(key, [entry for entry, result in read if result is None])
            if results or not entries:
                return results
            after = entries[-1][0].decode()

    async def cursors(self, job_ids: Sequence[str]) -> list[str | None]:
        """Of jobs of one batch, where each one's result is; None for those that have not ended here."""
        if not job_ids:
            return []
        key = self.keys.ended(batch_of(job_ids[0]))
        found = await self._redis.hmget(key, [short_id(identity) for identity in job_ids])
        entries = [_text(entry) if entry else "" for entry in found]
        return [entry if cursor_before(entry) else None for entry in entries]

    async def results_at(self, batch_id: str, cursors: Sequence[str]) -> list[Result]:
        """The results at these cursors, without those that are none or have expired."""
        key = self.keys.results(batch_id)
        pipe = self._redis.pipeline(transaction=False)
        for cursor in cursors:  # XREAD, as for reading on: a client needs no right to any other command
            pipe.xread({key: cursor_before(cursor) or "$"}, count=1)
        answers = await pipe.execute(raise_on_error=False) if cursors else []
        found: list[Result] = []
        for cursor, answer in zip(cursors, answers, strict=True):
            if isinstance(answer, Exception) and not isinstance(answer, ResponseError):
                raise answer
            entries = answer[0][1] if isinstance(answer, list) and answer else []
            found += [
                result
                for entry, fields in entries
                if entry.decode() == cursor and (result := parse_result(entry, fields)) is not None
            ]
        return found

    def _tell_of_bad(self, key: str, entries: Sequence[bytes]) -> None:
        """Name what is skipped, once: the same entries may be read again."""
        if new := [entry for entry in entries if entry not in self._told]:
            log.warning("%s: skipped entries that are no results: %s", key, b" ".join(new).decode())
            self._told.update(new[: _MOST_TOLD - len(self._told)])

    async def forget(self, batch_id: str) -> None:
        """Delete the batch's results now instead of after their time to live."""
        await self._redis.delete(*(name(batch_id) for name in (self.keys.batch, self.keys.results, self.keys.ended)))
        await self._redis.zrem(self.keys.batches, batch_id)


def _plain(number: float) -> str:
    """A number that is not negative as Lua reads it, whole ones without a point."""
    return f"{max(number, 0):.3f}".rstrip("0").rstrip(".")
