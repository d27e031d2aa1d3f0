"""What a scheduler does: hold the lease, read the request streams, dispatch, declare workers dead."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any

from redis.exceptions import ResponseError

from broker import keys, scripts
from broker.cluster import InFlight
from broker.connection import BLOCK_S, RedisClient, out_of_memory
from broker.errors import LeaseLostError
from broker.jobs import Priority, WaitingJob
from broker.policies.base import Placement
from broker.prefixes import MAX_CHARS
from broker.store.monitor import MonitorStore
from broker.tenant_names import DEFAULT_TENANT, tenant_of

log = logging.getLogger(__name__)

_PRIORITIES = frozenset(Priority)
_ANY: Mapping[str, str] = {}
#: What says that a job had more attempts is forged.
_MOST_ATTEMPTS = 10**6
#: Entries of the recent mix that are kept.
_RECENT_ENTRIES = 1000
#: Delayed jobs that are moved in one call.
_DUE_JOBS = 500
#: Of a job in a request stream: what says it is more is none.
_ID_CHARS = 256
_MOST_BYTES = 10**12
_MOST_TOKENS = 10**9
#: A lease that is not renewed for so many times its life has no owner, whatever Redis' clock says.
_ABANDONED = 1.25
#: Batches of the list that are looked at in one call.
_TIDY_BATCHES = 100

#: A job to be run a second time: job id, worker, prompt and output tokens and seconds to its result, all as predicted.
Copy = tuple[str, str, int, int, float]


class SchedulerStore(MonitorStore):
    """One pool as its scheduler sees it. ``epoch`` fences its writes: a scheduler without the lease moves nothing."""

    def __init__(self, redis: RedisClient, pool: str, owner: str, *, lease_ttl_s: float, result_ttl_s: int) -> None:
        super().__init__(redis, pool)
        self.owner = owner
        self.epoch = 0
        self._lease_ttl_ms = int(lease_ttl_s * 1000)
        self._ttl = result_ttl_s
        self._mark = b""  # of another's lease, and since when it has been that
        self._marked = 0.0
        self._scripts = {
            name: scripts.load(redis, name)
            for name in (
                *("lease", "release", "read", "dispatch", "recall", "copy", "discard", "remove_worker"),
                *("due", "tidy", "hasten", "drop_tenant"),
            )
        }

    async def hold_lease(self) -> bool:
        """Take or renew the lease; False where another scheduler holds it."""
        args = [self.keys.prefix, self.owner, self._lease_ttl_ms, self._abandoned()]
        answer = await self._scripts["lease"](args=args)
        if not isinstance(answer, list):
            self.epoch = int(answer)
            return True
        self.epoch = 0
        if answer[0] != self._mark:
            self._mark, self._marked = answer[0], asyncio.get_running_loop().time()
        return False

    def _abandoned(self) -> bytes:
        """The mark of a lease that nobody has renewed for longer than it lives, on our own clock."""
        unchanged_ms = 1000 * (asyncio.get_running_loop().time() - self._marked)
        return self._mark if unchanged_ms > _ABANDONED * self._lease_ttl_ms else b""

    async def release_lease(self) -> None:
        """Let a standby take over at once."""
        await self._scripts["release"](args=[self.keys.prefix, self.owner])

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

    async def dispatch(
        self, placements: Mapping[str, Sequence[Placement]], incarnations: Mapping[str, str] = _ANY
    ) -> tuple[set[str], set[str]]:
        """Move jobs to device queues.

        Args:
            placements: worker -> its jobs.
            incarnations: worker -> the life of it that is meant; to any, where it is not named.

        Returns:
            Workers that take none now (their jobs stay waiting), and jobs that need no device any more.

        Raises:
            LeaseLostError: another scheduler took over.
        """
        groups = [
            (
                worker,
                [
                    (
                        p.job.job_id,
                        p.job.batch_id,
                        p.job.level,
                        p.job.entry_id,
                        p.prompt_tokens,
                        p.output_tokens,
                        f"{p.predicted_s:.3f}",
                        p.reason,
                        p.job.charges,
                        p.job.deaths,
                    )
                    for p in of_worker
                ],
                incarnations.get(worker, ""),
            )
            for worker, of_worker in placements.items()
        ]
        answer = await self._scripts["dispatch"](args=[self.keys.prefix, self.epoch, self._ttl, scripts.pack(groups)])
        self._check(answer)
        closed, dropped = answer
        return {w.decode() for w in closed}, {j.decode() for j in dropped}

    async def recall(self, jobs: Mapping[str, Sequence[str]]) -> set[str]:
        """Take jobs back that their workers have not started: they wait again, their attempt unchanged.

        What has started stays. A job of two sides loses the one that is named here and does not wait. Each job that
        left a worker is told of by an event.

        Args:
            jobs: worker -> job ids.

        Returns:
            The jobs that wait again; or ended, where their batch was cancelled.

        Raises:
            LeaseLostError: another scheduler took over.
        """
        rows = [(worker, list(ids)) for worker, ids in jobs.items()]
        return await self._move("recall", rows)

    async def copy(self, copies: Sequence[Copy]) -> set[str]:
        """Run dispatched jobs a second time, each on another worker; the first result wins.

        Returns:
            The jobs that got their copy. The others have ended, wait, have one already, or their worker is not ready
            or runs them itself.

        Raises:
            LeaseLostError: another scheduler took over.
        """
        rows = [(*copy[:4], f"{copy[4]:.3f}") for copy in copies]
        return await self._move("copy", rows)

    async def discard(self, jobs: Sequence[WaitingJob]) -> None:
        """End waiting jobs whose batch was cancelled.

        Raises:
            LeaseLostError: another scheduler took over.
        """
        rows = [(j.job_id, j.batch_id, j.level, j.entry_id) for j in jobs]
        answer = await self._scripts["discard"](args=[self.keys.prefix, self.epoch, self._ttl, scripts.pack(rows)])
        self._check(answer)

    async def declare_dead(self, worker: str, *, silent_s: float, max_attempts: int, seen: float | None = None) -> int:
        """Remove a silent worker; its jobs go back.

        Args:
            worker: its name.
            silent_s: seconds on Redis' clock that it must have been silent, where ``seen`` is not given.
            max_attempts: a job that has lost its worker so often is given up.
            seen: the stamp of its last heartbeat, which the caller has watched for long enough.

        Returns:
            How many went back; -1 where it is not silent after all; -2 where it has left.
        """
        args = [self.keys.prefix, worker, "epoch", self.epoch, self._ttl, max_attempts, silent_s]
        args.append("" if seen is None else f"{seen:.3f}")
        return int(await self._scripts["remove_worker"](args=args))

    async def move_due(self) -> bool:
        """Let jobs wait again whose delay is over; expire batches whose completion window is. True: there may be more.

        Raises:
            LeaseLostError: another scheduler took over.
        """
        answer = await self._scripts["due"](args=[self.keys.prefix, self.epoch, self._ttl, _DUE_JOBS])
        self._check(answer)
        looked_at, foreign, gone = answer
        if foreign:
            log.warning("%s: removed what is no delayed job: %s", self.keys.delayed, scripts.names(foreign))
        if gone:
            log.info("%s: removed batches that are not there (any more): %s", self.keys.windows, scripts.names(gone))
        return int(looked_at) == _DUE_JOBS

    async def hasten(self, batch_id: str) -> None:
        """Delayed jobs of a cancelled batch end with the next look at what is due.

        Raises:
            LeaseLostError: another scheduler took over.
        """
        self._check(await self._scripts["hasten"](args=[self.keys.prefix, self.epoch, batch_id]))

    async def tidy_batches(self) -> None:
        """Take the batches that have expired out of the list of batches.

        Raises:
            LeaseLostError: another scheduler took over.
        """
        gone = _TIDY_BATCHES
        while gone == _TIDY_BATCHES:
            try:
                gone = int(await self._scripts["tidy"](args=[self.keys.prefix, self.epoch, _TIDY_BATCHES]))
            except ResponseError as e:  # somebody made it another kind of value: jobs go on without
                if not str(e).startswith("WRONGTYPE"):
                    raise
                log.warning("%s is no sorted set: delete it, and batches are listed again", self.keys.batches)
                return
            self._check(gone)

    async def note_ended(self, mix: str) -> None:
        """Keep the lengths of jobs that ended, as ``broker.recent_mix`` counts them, for the planner."""
        try:
            await self._redis.xadd(self.keys.recent, {"ended": mix}, maxlen=_RECENT_ENTRIES, approximate=True)
        except ResponseError as e:  # somebody made it another kind of value: jobs go on without
            if out_of_memory(e):
                return
            if not str(e).startswith("WRONGTYPE"):
                raise
            log.warning("%s is no stream: delete it, and the planner has a history again", self.keys.recent)

    async def in_flight(self, worker: str) -> list[InFlight]:
        """What is bound to a worker, read from its device queue: for a scheduler that starts."""
        entries = await self._redis.xrange(self.keys.device(worker))
        return [job for _, fields in entries if (job := parse_in_flight(fields))]

    async def _move(self, name: str, rows: Sequence[Any]) -> set[str]:
        """Run a move of jobs; returns those that it moved."""
        moved = await self._scripts[name](args=[self.keys.prefix, self.epoch, self._ttl, scripts.pack(rows)])
        self._check(moved)
        return {job.decode() for job in moved}

    def _check(self, answer: Any) -> None:
        if answer == -1:
            raise LeaseLostError(f"another scheduler took over pool {self.pool}")


def _count(text: str) -> int:
    """How often something happened to a job; raises ValueError where it is no such number."""
    count = int(text)
    if not 0 <= count <= _MOST_ATTEMPTS:
        raise ValueError(f"not a number of attempts: {count}")
    return count


def parse_waiting_job(level: str, entry: bytes, fields: Sequence[bytes] | None) -> WaitingJob | None:
    """A job from its stream entry; None where it is not one (anyone can write to Redis)."""
    try:
        values = [value.decode() for value in fields or ()]
        field = dict(zip(values[::2], values[1::2], strict=True))
        job = WaitingJob(
            job_id=field["job"],
            level=level,
            entry_id=entry.decode(),
            batch_id=field["batch"],
            priority=field["priority"],
            body_bytes=int(field["body_bytes"]),
            max_tokens=int(field["max_tokens"]),
            prefix=field.get("prefix", "")[:MAX_CHARS],
            deaths=_count(field.get("deaths", "0")),
            charges=_count(field.get("charges", "0")),
        )
    except (KeyError, ValueError):
        return None
    stream, separator, tenant = level.partition(":")
    in_its_place = job.priority in _PRIORITIES and stream in ("returned", job.priority)
    if stream != "returned":  # nobody is served at another's expense
        in_its_place &= tenant_of(job.batch_id) == (tenant if separator else DEFAULT_TENANT)
    short = len(job.job_id) <= _ID_CHARS and len(job.batch_id) <= _ID_CHARS
    sized = 0 <= job.body_bytes <= _MOST_BYTES and 0 <= job.max_tokens <= _MOST_TOKENS
    return job if in_its_place and short and sized else None


def parse_in_flight(fields: Mapping[bytes, bytes]) -> InFlight | None:
    """A job from its device queue's entry; None where it is not one: its worker removes it."""
    try:
        deaths, charges = (_count(fields.get(name, b"0").decode()) for name in (b"deaths", b"charges"))
        prompt, output = int(fields[b"prompt_tokens"]), int(fields[b"output_tokens"])
        return InFlight(fields[b"job"].decode(), prompt, output, deaths=deaths, charges=charges)
    except (KeyError, ValueError):
        return None
