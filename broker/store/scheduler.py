"""What a scheduler does: dispatch and take back, declare workers dead, move what is due, tidy up."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from redis.exceptions import ResponseError

from broker import scripts
from broker.connection import RedisClient, out_of_memory
from broker.jobs import WaitingJob
from broker.store.request_streams import RequestStreams

if TYPE_CHECKING:
    from broker.policies.base import Placement  # it would bring NumPy along

log = logging.getLogger(__name__)

_ANY: Mapping[str, str] = {}
#: Entries of the recent mix that are kept.
_RECENT_ENTRIES = 1000
#: Delayed jobs that are moved in one call.
_DUE_JOBS = 500
#: Batches of the list that are looked at in one call.
_TIDY_BATCHES = 100

#: A job to be run a second time: job id, worker, prompt and output tokens and seconds to its result, all as predicted.
Copy = tuple[str, str, int, int, float]


class SchedulerStore(RequestStreams):
    """One pool as its scheduler sees it. ``epoch`` fences its writes: a scheduler without the lease moves nothing."""

    def __init__(self, redis: RedisClient, pool: str, owner: str, *, lease_ttl_s: float, result_ttl_s: int) -> None:
        super().__init__(redis, pool, owner, lease_ttl_s=lease_ttl_s)
        self._ttl = result_ttl_s
        moves = ("dispatch", "recall", "copy", "discard", "remove_worker", "due", "tidy", "hasten", "drop_tenant")
        self._scripts |= {name: scripts.load(redis, name) for name in moves}

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

    async def _move(self, name: str, rows: Sequence[Any]) -> set[str]:
        """Run a move of jobs; returns those that it moved."""
        moved = await self._scripts[name](args=[self.keys.prefix, self.epoch, self._ttl, scripts.pack(rows)])
        self._check(moved)
        return {job.decode() for job in moved}
