"""The plan as one host sees it: taken over where it can be carried out, and left where it turns out that it cannot."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence

from broker.errors import UsageError
from broker.heartbeat import Heartbeat
from broker.pool_plan import PlannedWorker, PoolPlan
from broker.recent_mix import RecentMix
from broker.store.monitor import MonitorStore
from broker.store.plans import PlanStore, StoredPlan
from broker.worker_options import with_model
from planner.autoscaling import Scaler, ScaleTerms, workers_to_run
from planner.pool_load import pool_load
from tokenyard.plan_memory import PlanMemory
from tokenyard.supervision import own_workers, process_name

log = logging.getLogger(__name__)

#: The mean length of jobs is looked up this often, over the jobs of so long (seconds).
_MIX_EVERY_S = 30.0
_MIX_S = 1800.0


class HostPlan:
    """Which workers of this host should run."""

    def __init__(
        self,
        host: str,
        models: Sequence[str],
        cores: int,
        scale: ScaleTerms,
        check_words: Callable[[Sequence[str]], None],
        memory: PlanMemory,
        view: Callable[[PoolPlan], PoolPlan],
    ) -> None:
        self._host = host
        self._models = models
        self._cores = cores
        self._check_words = check_words
        self._scaler = Scaler(scale)
        self._memory = memory
        self._view = view  # what a plan means here; the one that is kept is as it was written
        self._token: str | None = None
        self._plan: PoolPlan | None = None
        self._good = memory.read()
        self._wanted: list[PlannedWorker] = []
        self._needed = 0.0
        self._mix = RecentMix()
        self._mix_at = float("-inf")
        self._start_s = 0.0

    @property
    def names(self) -> list[str]:
        """Process names of what is wanted now."""
        return [process_name(worker) for worker in self._wanted]

    @property
    def hosts(self) -> set[str]:
        """The hosts of the plan whose workers are run from here: this one, or those that it stands for."""
        if self._plan is None:
            return {self._host}
        seen = zip(self._plan.workers, self._view(self._plan).workers, strict=True)
        return {self._host, *(planned.host for planned, here in seen if here.host == self._host)}

    async def refresh(self, plans: PlanStore) -> None:
        """Take over a plan that was written since."""
        if await plans.token() == self._token:
            return
        stored = await plans.read()
        self._token = stored.token
        self._take_over(stored)

    def _take_over(self, stored: StoredPlan) -> None:
        if stored.plan is None:
            if stored.problem:
                self._refuse(stored.problem)
            elif self._plan is not None:
                log.warning("the plan was deleted: what runs here stays as it is")
            return
        try:
            self._check(stored.plan)
        except UsageError as error:
            self._refuse(str(error))
            return
        log.info("plan %d: %s", stored.plan.version, stored.plan.reason or "no reason given")
        self._plan = stored.plan

    def _refuse(self, why: str) -> None:
        """Stay with the plan of before; a supervisor that has just started, with the one that the last one kept."""
        if self._plan is None and self._good is not None:
            try:
                self._check(self._good)
                self._plan = self._good
            except UsageError as error:
                log.warning("the plan of before: %s", error)
        log.error("%s: what runs here stays as it is", why)

    def _check(self, plan: PoolPlan) -> None:
        for worker in own_workers(self._view(plan), self._host, self._models, self._cores):
            try:
                self._check_words(with_model(worker.options, self._models))
            except UsageError as error:
                raise UsageError(f"plan {plan.version}, worker {worker.name}: {error}") from None

    async def measure(self, plans: PlanStore, monitor: MonitorStore, beats: Mapping[str, Heartbeat | None]) -> None:
        """See what there is to do: how many run depends on it."""
        now = asyncio.get_running_loop().time()
        if now - self._mix_at >= _MIX_EVERY_S:
            self._mix, self._mix_at = await plans.recent_mix(_MIX_S), now
            self._start_s = await plans.start_seconds() or 0.0
        self._needed = self._scaler.observe(now, await pool_load(monitor, self._mix, beats), self._start_s)

    def wanted(self, least: int, most: int) -> list[PlannedWorker] | None:
        """Workers that should run now; None where no plan was ever taken over: then nothing is touched."""
        if self._plan is None:
            return None
        self._wanted = workers_to_run(self._view(self._plan), self._host, self._needed, least, most)
        return self._wanted

    def reached(self) -> None:
        """All that is wanted now serves: this plan can be gone back to."""
        if self._plan is not None and (self._wanted or self._host in self._plan.idle_hosts):
            self._good = self._plan
            self._memory.keep(self._plan)

    def give_up(self, name: str, why: str) -> None:
        """A worker of this plan cannot run here: go back to the plan before, where there is one."""
        plan, good = self._plan, self._good
        if plan is None or name not in {process_name(w) for w in self._view(plan).workers if w.host == self._host}:
            return
        if good is None or good.version == plan.version:
            log.error("plan %d: worker %s does not start here (%s); trying on", plan.version, name, why)
            return
        log.error("plan %d: worker %s does not start here (%s): back to plan %d", plan.version, name, why, good.version)
        self._plan = good
