"""What a scheduler reads: the request streams, and what of it is bound to a worker already."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from contextlib import suppress

from redis.exceptions import ResponseError

from broker import keys, scripts
from broker.cluster import InFlight
from broker.connection import BLOCK_S, RedisClient
from broker.errors import LeaseLostError
from broker.jobs import WaitingJob
from broker.store.lease import LeaseStore
from broker.stream_jobs import parse_in_flight, parse_waiting_job

log = logging.getLogger(__name__)


class RequestStreams(LeaseStore):
    """Jobs that wait, and those that were given to a worker by a scheduler before."""

    def __init__(self, redis: RedisClient, pool: str, owner: str, *, lease_ttl_s: float) -> None:
        super().__init__(redis, pool, owner, lease_ttl_s=lease_ttl_s)
        self._scripts["read"] = scripts.load(redis, "read")

    async def prepare(self) -> None:
        """Make the request streams and their group, where they are not there yet."""
        await self._prepare(keys.LEVELS)

    async def _prepare(self, levels: Sequence[str]) -> None:
        for level in levels:
            with suppress(ResponseError):  # BUSYGROUP: it is there
                await self._redis.xgroup_create(self.keys.requests(level), keys.SCHEDULER_GROUP, "0", mkstream=True)

    async def read_requests(self, level: str, limit: int) -> list[WaitingJob]:
        """New jobs of one request stream, at most ``limit``.

        Raises:
            LeaseLostError: another scheduler took over, or the stream was deleted.
        """
        jobs, _ = await self._read(level, limit, ">")
        return jobs

    async def read_pending(self, level: str, limit: int) -> list[WaitingJob]:
        """All jobs of one request stream that were read, by whomever, and not dispatched; ``limit`` a call.

        Raises:
            LeaseLostError: another scheduler took over, or the stream was deleted.
        """
        jobs: list[WaitingJob] = []
        position = "0"
        while position:
            found, position = await self._read(level, limit, position)
            jobs += found
        return jobs

    async def wait_for_request(self, level: str, after: str) -> str:
        """Wait (at most ``BLOCK_S`` seconds) for an entry after ``after``; returns the newest id seen."""
        found = await self._redis.xread({self.keys.requests(level): after}, count=1, block=int(BLOCK_S * 1000))
        return found[0][1][0][0].decode() if found else after

    async def _read(self, level: str, limit: int, after: str) -> tuple[list[WaitingJob], str]:
        """Jobs, and the id of the last entry; entries that are no jobs are removed, since nobody can run them."""
        try:
            entries = await self._scripts["read"](args=[self.keys.prefix, self.epoch, level, limit, after])
        except ResponseError as e:
            if "NOGROUP" not in str(e):
                raise
            raise LeaseLostError(f"the request streams of pool {self.pool} were deleted") from None
        self._check(entries)
        jobs = {entry: parse_waiting_job(level, entry, fields) for entry, fields in entries}
        bad = [entry for entry, job in jobs.items() if job is None]
        if bad:
            stream = self.keys.requests(level)
            log.warning("%s: removed entries that are no jobs: %s", stream, b" ".join(bad).decode())
            await self._redis.xack(stream, keys.SCHEDULER_GROUP, *bad)
            await self._redis.xdel(stream, *bad)
        return [job for job in jobs.values() if job], entries[-1][0].decode() if entries else ""

    async def cancelled(self, batches: Collection[str]) -> set[str]:
        """Those of the batches that are cancelled, or whose completion window is over."""
        pipe = self._redis.pipeline(transaction=False)
        for batch in batches:
            pipe.hget(self.keys.batch(batch), "state")
        states = await pipe.execute() if batches else []
        return {batch for batch, state in zip(batches, states, strict=True) if state in (b"cancelled", b"expired")}

    async def in_flight(self, worker: str) -> list[InFlight]:
        """What is bound to a worker, read from its device queue: for a scheduler that starts."""
        entries = await self._redis.xrange(self.keys.device(worker))
        return [job for _, fields in entries if (job := parse_in_flight(fields))]
