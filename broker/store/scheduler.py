"""What a scheduler does: hold the lease, read the request streams, dispatch, declare workers dead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress

from redis.exceptions import ResponseError

from broker import keys, scripts
from broker.cluster import InFlight
from broker.connection import BLOCK_S, RedisClient
from broker.errors import LeaseLostError
from broker.jobs import WaitingJob
from broker.policies.base import Placement
from broker.store.monitor import MonitorStore

#: The request streams' one consumer: whoever holds the lease takes over what its predecessor had read.
_CONSUMER = "scheduler"


class SchedulerStore(MonitorStore):
    """One pool as its scheduler sees it. ``epoch`` fences its writes: a scheduler without the lease moves nothing."""

    def __init__(self, redis: RedisClient, pool: str, owner: str, *, lease_ttl_s: float, result_ttl_s: int) -> None:
        super().__init__(redis, pool)
        self.owner = owner
        self.epoch = 0
        self._lease_ttl_ms = int(lease_ttl_s * 1000)
        self._ttl = result_ttl_s
        self._scripts = {
            name: scripts.load(redis, name) for name in ("lease", "release", "dispatch", "discard", "remove_worker")
        }

    async def hold_lease(self) -> bool:
        """Take or renew the lease; False where another scheduler holds it."""
        self.epoch = int(await self._scripts["lease"](args=[self.keys.prefix, self.owner, self._lease_ttl_ms]))
        return self.epoch > 0

    async def release_lease(self) -> None:
        """Let a standby take over at once."""
        await self._scripts["release"](args=[self.keys.prefix, self.owner])

    async def prepare(self) -> None:
        """Make the request streams and their group, where they are not there yet."""
        for level in keys.LEVELS:
            with suppress(ResponseError):  # BUSYGROUP: it is there
                await self._redis.xgroup_create(self.keys.requests(level), keys.SCHEDULER_GROUP, "0", mkstream=True)

    async def read_requests(self, level: str, limit: int, *, after: str | None = None) -> list[WaitingJob]:
        """New jobs of one request stream, waiting up to ``BLOCK_S`` seconds for the first.

        With ``after``, those a predecessor had read and not dispatched, from that entry on ("0": all).
        """
        block = int(BLOCK_S * 1000) if after is None else None
        streams = {self.keys.requests(level): ">" if after is None else after}
        found = await self._redis.xreadgroup(keys.SCHEDULER_GROUP, _CONSUMER, streams, count=limit, block=block)
        return [
            WaitingJob(
                job_id=fields[b"job"].decode(),
                level=level,
                entry_id=entry.decode(),
                batch_id=fields[b"batch"].decode(),
                priority=fields[b"priority"].decode(),
                body_bytes=int(fields[b"body_bytes"]),
                max_tokens=int(fields[b"max_tokens"]),
            )
            for _, entries in found
            for entry, fields in entries
            if fields  # an entry deleted while it was pending reads as empty
        ]

    async def dispatch(self, placements: Mapping[str, Sequence[Placement]]) -> tuple[set[str], set[str]]:
        """Move jobs to device queues.

        Args:
            placements: worker -> its jobs.

        Returns:
            Workers that take none now (their jobs stay waiting), and jobs that need no device any more.

        Raises:
            LeaseLostError: another scheduler took over.
        """
        groups = [
            (
                worker,
                [(p.job.job_id, p.job.level, p.job.entry_id, p.prompt_tokens, p.output_tokens) for p in of_worker],
            )
            for worker, of_worker in placements.items()
        ]
        answer = await self._scripts["dispatch"](args=[self.keys.prefix, self.epoch, self._ttl, scripts.pack(groups)])
        if answer == -1:
            raise LeaseLostError(f"another scheduler took over pool {self.pool}")
        closed, dropped = answer
        return {w.decode() for w in closed}, {j.decode() for j in dropped}

    async def discard(self, jobs: Sequence[WaitingJob]) -> None:
        """End waiting jobs whose batch was cancelled.

        Raises:
            LeaseLostError: another scheduler took over.
        """
        rows = [(j.job_id, j.level, j.entry_id) for j in jobs]
        answer = await self._scripts["discard"](args=[self.keys.prefix, self.epoch, self._ttl, scripts.pack(rows)])
        if answer == -1:
            raise LeaseLostError(f"another scheduler took over pool {self.pool}")

    async def declare_dead(self, worker: str, *, silent_s: float, max_attempts: int) -> int:
        """Remove a silent worker; its jobs go back. Returns how many, -1 where it is not silent after all."""
        args = [self.keys.prefix, worker, "epoch", self.epoch, self._ttl, max_attempts, silent_s]
        return int(await self._scripts["remove_worker"](args=args))

    async def in_flight(self, worker: str) -> list[InFlight]:
        """What is bound to a worker, read from its device queue: for a scheduler that starts."""
        entries = await self._redis.xrange(self.keys.device(worker))
        return [
            InFlight(fields[b"job"].decode(), int(fields[b"prompt_tokens"]), int(fields[b"output_tokens"]))
            for _, fields in entries
        ]
