"""What a watcher does: look, change nothing."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

from broker import keys
from broker.connection import BLOCK_S, RedisClient, RedisError, clock
from broker.heartbeat import Heartbeat, parse_heartbeat
from broker.job_record import JobRecord, batch_of, cursor_before, parse_job, short_id
from broker.scripts import text
from broker.tenant_names import is_tenant

#: No batch's id is longer.
_BATCH_CHARS = 200
#: No time is later (seconds since the epoch).
_LATEST = 1e12


class MonitorStore:
    """Read-only look at one pool."""

    def __init__(self, redis: RedisClient, pool: str) -> None:
        self._redis = redis
        self.pool = pool
        self.keys = keys.PoolKeys(pool)

    async def heartbeats(self) -> dict[str, Heartbeat | None]:
        """The last heartbeat of each worker; None where it expired or cannot be read."""
        members = await _sound(self._redis.zrange(self.keys.workers, 0, -1), [])
        names = [name.decode(errors="surrogateescape") for name in members]
        pipe = self._redis.pipeline(transaction=False)
        for name in names:
            pipe.hgetall(self.keys.worker(name))
        found = await pipe.execute(raise_on_error=False) if names else []
        return {name: parse_heartbeat(name, _hash(raw)) for name, raw in zip(names, found, strict=True)}

    async def device_depths(self, workers: list[str]) -> dict[str, int]:
        """Jobs bound to each worker, queued and running."""
        pipe = self._redis.pipeline(transaction=False)
        for name in workers:
            pipe.xlen(self.keys.device(name))
        return dict(zip(workers, await _each(pipe, 0), strict=True))

    async def waiting(self) -> dict[str, int]:
        """Jobs in each request stream, those of all tenants together."""
        levels = await self._levels()
        pipe = self._redis.pipeline(transaction=False)
        for level in levels:
            pipe.xlen(self.keys.requests(level))
        found: dict[str, int] = dict.fromkeys(keys.LEVELS, 0)
        for level, jobs in zip(levels, await _each(pipe, 0), strict=True):
            found[level.partition(":")[0]] += jobs
        return found

    async def oldest(self) -> dict[str, float]:
        """Since when the oldest job of each request stream waits there, seconds since the epoch on Redis' clock.

        Streams in which nothing waits are missing; those of tenants count in their level.
        """
        levels = await self._levels()
        pipe = self._redis.pipeline(transaction=False)
        for level in levels:
            pipe.xrange(self.keys.requests(level), count=1)
        found: dict[str, float] = {}
        for level, entries in zip(levels, await _each(pipe, []), strict=True):
            if entries:
                name, since = level.partition(":")[0], int(entries[0][0].partition(b"-")[0]) / 1000
                found[name] = min(since, found.get(name, since))
        return found

    async def _levels(self) -> list[str]:
        """The request streams, those of tenants, too."""
        names = map(text, await _sound(self._redis.smembers(self.keys.tenants), set()))
        levels: list[str] = [*keys.LEVELS]
        for tenant in filter(is_tenant, names):
            levels += [keys.tenant_level(level, tenant) for level in keys.FRESH_LEVELS]
        return levels

    async def delayed(self) -> int:
        """Jobs that failed and are tried again later."""
        return await count_members(self._redis, self.keys.delayed)

    async def batches(self, limit: int = 50) -> list[str]:
        """Ids of batches that are stored, newest first, at most ``limit``."""
        names = await _sound(self._redis.zrevrange(self.keys.batches, 0, limit - 1), [])
        ids = [name for name in map(text, names) if name.isprintable() and len(name) <= _BATCH_CHARS]
        pipe = self._redis.pipeline(transaction=False)
        for batch_id in ids:
            pipe.exists(self.keys.batch(batch_id))
        there = await pipe.execute() if ids else []
        return [batch_id for batch_id, exists in zip(ids, there, strict=True) if exists]

    async def created(self, batch_id: str) -> float:
        """When a batch got its first job, seconds since the epoch on Redis' clock; 0 where that is not known."""
        try:
            found = float(await self._redis.hget(self.keys.batch(batch_id), "created") or 0)
        except ValueError:
            return 0.0
        return found if 0 < found < _LATEST else 0.0

    async def job(self, job_id: str) -> JobRecord | None:
        """A job that has not ended; None where there is none of that id, or what is stored is no job."""
        pipe = self._redis.pipeline(transaction=False)
        pipe.hgetall(self.keys.job(job_id))
        pipe.strlen(self.keys.body(job_id))
        raw, body_bytes = await pipe.execute(raise_on_error=False)
        return parse_job(job_id, _hash(raw), body_bytes if isinstance(body_bytes, int) else 0)

    async def cursor_of(self, job_id: str) -> str | None:
        """Position in its batch's results from which an ended job's result is the next; None where it has not ended."""
        entry = await self._redis.hget(self.keys.ended(batch_of(job_id)), short_id(job_id))
        return cursor_before(text(entry)) if entry else None

    async def lease_owner(self) -> str | None:
        """Who schedules this pool now."""
        owner = await _sound(self._redis.hget(self.keys.lease, "owner"), None)
        return text(owner)[:_BATCH_CHARS] if owner else None

    async def clock(self) -> float:
        """Seconds since the epoch on Redis' clock, the one that heartbeats are stamped with."""
        return await clock(self._redis, self.keys.prefix)

    async def events(self, after: str, *, limit: int = 1000) -> list[tuple[str, dict[str, str]]]:
        """Events after position ``after`` ("$": from now on); waits at most ``BLOCK_S`` seconds."""
        found = await self._redis.xread({self.keys.events: after}, count=limit, block=int(BLOCK_S * 1000))
        return [
            (entry.decode(), {text(k): text(v) for k, v in fields.items()})
            for _, entries in found
            for entry, fields in entries
        ]

    async def last_event(self) -> str:
        """Position of the newest event."""
        newest = await self._redis.xrevrange(self.keys.events, count=1)
        return newest[0][0].decode() if newest else "0"


async def count_members(redis: RedisClient, key: str) -> int:
    """Members of a sorted set; a key that is none counts as empty."""
    return int(await _sound(redis.zcard(key), 0))


async def _sound(answer: Awaitable[Any], otherwise: Any) -> Any:
    """What Redis answers; ``otherwise`` where somebody made the key another kind of value."""
    try:
        return await answer
    except RedisError as error:
        return _unless_of_another_kind(error, otherwise)


async def _each(pipe: Any, otherwise: Any) -> list[Any]:
    """The same for each answer of a pipeline."""
    answers = await pipe.execute(raise_on_error=False) if len(pipe) else []
    return [_unless_of_another_kind(a, otherwise) if isinstance(a, Exception) else a for a in answers]


def _hash(answer: Any) -> dict[bytes, bytes]:
    """What HGETALL answered; a key that is no hash counts as empty."""
    return _unless_of_another_kind(answer, {}) if isinstance(answer, Exception) else answer


def _unless_of_another_kind(error: Exception, otherwise: Any) -> Any:
    if not str(error).startswith("WRONGTYPE"):
        raise error
    return otherwise
