"""Lets the placer decide and carries it out: jobs to devices, back from them, and to a second one at the end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence

from broker.concurrency import Pacer
from broker.placement import Placer
from broker.policies.base import Placement
from broker.scheduler_stats import SchedulerStats
from broker.store.scheduler import SchedulerStore

#: How often to look whether the end of the work can be brought nearer (seconds).
_FINISH_S = 0.25


class Decider:
    """One term's decisions. ``wake`` is set when something changed: decide again."""

    def __init__(
        self,
        store: SchedulerStore,
        placer: Placer,
        stats: SchedulerStats,
        *,
        wake: asyncio.Event,
        look: asyncio.Event,
        freed: Callable[[], None],
    ) -> None:
        """Prepare; nothing is decided yet.

        Args:
            store: moves the jobs.
            placer: decides.
            stats: counts decisions and their time.
            wake: see above.
            look: set when a worker is not as we thought.
            freed: called when jobs have left the windows.
        """
        self._store = store
        self._placer = placer
        self._stats = stats
        self._look = look
        self._freed = freed
        self._recalled: dict[str, set[str]] = {}  # worker -> jobs that we took back: their event is yet to come
        self.wake = wake

    async def dispatch(self) -> None:
        """For ever: what waits to where there is room."""
        now = asyncio.get_running_loop().time
        pacer = Pacer()
        while True:
            await self.wake.wait()
            await pacer.pause()
            self.wake.clear()
            while groups := self._decide(now):
                await self._carry_out(groups)
                self._freed()

    def _decide(self, now: Callable[[], float]) -> dict[str, list[Placement]]:
        began = now()
        groups = self._placer.decide(began)
        self._stats.decided(now() - began, sum(map(len, groups.values())))
        return groups

    async def _carry_out(self, groups: dict[str, list[Placement]]) -> None:
        closed, dropped = await self._store.dispatch(groups, self._placer.cluster.incarnations(groups))
        if closed:
            for worker in closed:
                self._placer.close(worker)
            self._placer.take_back(placement for worker in closed for placement in groups[worker])
            self._look.set()
        if dropped:
            for worker, placements in groups.items():
                self._placer.forget(worker, [p.job.job_id for p in placements if p.job.job_id in dropped])

    async def finish_up(self) -> None:
        """For ever, where nothing waits: take back what would end sooner elsewhere, run stragglers a second time."""
        now = asyncio.get_running_loop().time
        while True:
            await asyncio.sleep(_FINISH_S)
            decided = self._placer.finish_up(now())
            await self.recall(decided.recalls)
            if decided.copies:
                made = await self._store.copy(
                    [
                        (c.job.job_id, c.device, c.job.prompt_tokens, c.job.output_tokens, c.predicted_s)
                        for c in decided.copies
                    ]
                )
                for copy in decided.copies:
                    if copy.job.job_id not in made:
                        self._placer.uncopy(copy.device, copy.job.job_id)

    async def recall(self, jobs: Mapping[str, Sequence[str]]) -> None:
        """Take jobs back that their workers have not started; of a cancelled batch, they end."""
        if not jobs:
            return
        back = await self._store.recall(jobs)
        for worker, of_worker in jobs.items():
            mine = [job for job in of_worker if job in back]
            self._recalled.setdefault(worker, set()).update(mine)
            self._placer.forget(worker, mine)

    def not_recalled(self, worker: str, jobs: Iterable[str]) -> list[str]:
        """Of jobs that came back from a worker, those that we did not take back: the others are counted already."""
        ours = self._recalled.get(worker, set())
        others = [job for job in jobs if job not in ours]
        ours.difference_update(jobs)
        return others
