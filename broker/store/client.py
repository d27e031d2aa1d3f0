"""What a client does: register and find pools, submit, read results, cancel."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from broker import keys, scripts
from broker.connection import RedisClient
from broker.errors import UnknownBatchError, UsageError
from broker.jobs import BatchCounts, Priority, Result, Submission

#: A larger max_tokens means the same; Lua writes numbers above 10^17 in a form that is no integer.
_MOST_TOKENS = 10**9
#: No time (milliseconds since the epoch) and no number of tokens is larger.
_MOST = 10**15


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
            new = await self._redis.hsetnx(keys.MODELS, model, pool)
            owner = (await self._redis.hget(keys.MODELS, model) or b"").decode()
            if not new and owner != pool:
                raise UsageError(
                    f"model {model!r} is served by pool {owner!r}; use --pool {owner} or another model name"
                )
        await self._redis.sadd(keys.POOLS, pool)

    async def pools(self) -> list[str]:
        """Names of all pools, sorted."""
        return sorted(name.decode() for name in await self._redis.smembers(keys.POOLS))

    async def models(self) -> dict[str, str]:
        """Model name -> pool."""
        found = await self._redis.hgetall(keys.MODELS)
        return {model.decode(): pool.decode() for model, pool in found.items()}


class ClientStore:
    """One pool as a client sees it."""

    def __init__(self, redis: RedisClient, pool: str, result_ttl_s: int) -> None:
        self._redis = redis
        self.keys = keys.PoolKeys(pool)
        self._ttl = result_ttl_s
        self._submit = scripts.load(redis, "submit")
        self._seal = scripts.load(redis, "seal")
        self._cancel = scripts.load(redis, "cancel")

    async def submit(self, batch_id: str, jobs: Sequence[Submission], priority: Priority) -> int:
        """Put jobs into the queue, all or none; at most some hundreds a call.

        Returns:
            How many were new; the rest were there already.

        Raises:
            UsageError: the batch is cancelled.
        """
        rows = [
            (j.job_id, j.custom_id, j.url, scripts.text(j.body), min(j.max_tokens, _MOST_TOKENS), j.prefix)
            for j in jobs
        ]
        args = [self.keys.prefix, batch_id, priority.value, scripts.pack(rows)]
        new = int(await self._submit(args=args))
        if new < 0:
            raise UsageError(f"batch {batch_id} is cancelled; submit to a new one")
        return new

    async def seal(self, batch_id: str) -> None:
        """Say that the batch has all its jobs."""
        await self._seal(args=[self.keys.prefix, batch_id, self._ttl])

    async def cancel(self, batch_id: str) -> bool:
        """Cancel a batch; what runs is aborted by its worker. False where there is none of that id."""
        return bool(await self._cancel(args=[self.keys.prefix, batch_id]))

    async def counts(self, batch_id: str) -> BatchCounts:
        """How far the batch is.

        Raises:
            UnknownBatchError: there is none of that id in this pool.
        """
        raw = await self._redis.hgetall(self.keys.batch(batch_id))
        if not raw:
            raise UnknownBatchError(f"no batch {batch_id}: `tokenyard status` lists the ones there are")
        fields = {name.decode(): value.decode() for name, value in raw.items()}
        return msgspec.convert(
            {k: v for k, v in fields.items() if k in BatchCounts.__struct_fields__}, BatchCounts, strict=False
        )

    async def results(self, batch_id: str, after: str, *, limit: int, block: float) -> list[Result]:
        """Ended jobs of the batch after cursor ``after`` ("0" for all), oldest first.

        Where there are none, waits up to ``block`` seconds (0: not at all).
        """
        key = self.keys.results(batch_id)
        found = await self._redis.xread({key: after}, count=limit, block=int(block * 1000) or None)
        return [_result(entry, fields) for _, entries in found for entry, fields in entries]

    async def forget(self, batch_id: str) -> None:
        """Delete the batch's results now instead of after their time to live."""
        await self._redis.delete(*(name(batch_id) for name in (self.keys.batch, self.keys.results, self.keys.ended)))
        await self._redis.zrem(self.keys.batches, batch_id)


def _result(entry: bytes, fields: dict[bytes, bytes]) -> Result:
    return Result(
        cursor=entry.decode(),
        job_id=fields[b"job"].decode(),
        custom_id=fields[b"custom_id"].decode(),
        status_code=int(fields[b"status_code"]),
        body=fields.get(b"body", b""),
        error_code=fields.get(b"error_code", b"").decode(),
        error_message=fields.get(b"error_message", b"").decode(),
        prompt_tokens=int(fields.get(b"prompt_tokens", 0)),
        output_tokens=int(fields.get(b"output_tokens", 0)),
        worker=fields[b"worker"].decode(),
        attempt=int(fields[b"attempt"]),
        submitted=float(fields[b"submitted"]),
        started=float(fields[b"started"] or 0),
        dispatched=_number(fields.get(b"dispatched")),
        ended=_number(entry.partition(b"-")[0]) / 1000,  # a stream's ids are milliseconds on Redis' clock
        predicted_s=_number(fields.get(b"predicted_s")),
        predicted_output_tokens=int(_number(fields.get(b"predicted_output_tokens"))),
        reason=scripts.text(fields.get(b"reason", b"")),
        cached_tokens=int(_number(fields.get(b"cached_tokens"))),
    )


def _number(raw: bytes | None) -> float:
    """A number that only informs; 0 where it is none that makes sense (anyone can write to Redis)."""
    try:
        number = float(raw or 0)
    except ValueError:
        return 0.0
    return number if 0 <= number <= _MOST else 0.0
