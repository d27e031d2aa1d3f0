"""One look of the planner: what came lately, what would be best for it, and whether that is worth a change."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from broker.connection import RedisClient
from broker.errors import TokenyardError
from broker.heartbeat import Heartbeat
from broker.pool_plan import PoolPlan, hosts_of
from broker.profiles import ProfileRecord
from broker.recent_mix import RecentMix
from broker.store.monitor import MonitorStore
from broker.store.plans import PlanStore, StoredPlan
from broker.store.profiles import ProfileStore
from planner.live_profiles import LiveSpeeds, refit
from planner.planning import Planning
from planner.pool_load import pool_load
from planner.resizing import (
    Load,
    Note,
    ResizeTerms,
    change_between,
    consider,
    gain_of,
    parse_note,
    same_workers,
)

log = logging.getLogger(__name__)

#: Where no start has been timed yet: what vLLM takes to load a model, about (seconds).
_START_S = 60.0
#: Fewer ended jobs are no mix to plan for.
_LEAST_JOBS = 20
_BEAT_S = 0.5
#: Hosts that are named one by one.
_NAMED = 3


class LookTerms(NamedTuple):
    """How a look is made.

    Attributes:
        mix_s: the mix is that of the jobs that ended in the last so many seconds.
        watch_s: heartbeats are watched for so long, to see how fast the workers are; 0: not at all.
        resize: when a change is worth it.
    """

    mix_s: float = 1800.0
    watch_s: float = 10.0
    resize: ResizeTerms = ResizeTerms()


class Replanner:
    """Looks at one pool, and writes its plan where another one is worth it."""

    def __init__(self, redis: RedisClient, pool: str, planning: Planning, terms: LookTerms) -> None:
        self.pool = pool
        self._plans = PlanStore(redis, pool)
        self._profiles = ProfileStore(redis, pool)
        self._monitor = MonitorStore(redis, pool)
        self._planning = planning
        self._terms = terms

    async def look(self, *, at_once: bool = False) -> str:
        """Look once; returns in one line what came of it.

        Args:
            at_once: somebody asked: any gain at all is enough, and it need not be seen again.
        """
        stored = await self._plans.read()
        if stored.problem:
            log.warning("pool %s: %s; planning anew", self.pool, stored.problem)
        mix = await self._plans.recent_mix(self._terms.mix_s)
        if mix.jobs < _LEAST_JOBS:
            return f"{mix.jobs} jobs ended lately, too few to plan for: the plan stays as it is"
        beats, profiles = await self._watch()
        try:
            best = await asyncio.to_thread(self._planning.propose, mix, profiles)  # it may take seconds
        except TokenyardError as error:
            return f"no plan for this mix: {error}; the pool stays as it is"
        return await self._decide(stored, best, mix, profiles, beats, at_once)

    async def _decide(
        self,
        stored: StoredPlan,
        best: PoolPlan,
        mix: RecentMix,
        profiles: list[ProfileRecord],
        beats: Mapping[str, Heartbeat | None],
        at_once: bool,
    ) -> str:
        now = await self._monitor.clock()
        today = stored.plan
        if today is not None and same_workers(today, best):
            await self._plans.keep_note(msgspec.json.encode(Note()))
            return f"plan {today.version} is the best for this mix"
        load = await pool_load(self._monitor, mix, beats)
        gain = await self._gain(today, best, mix, profiles, load)
        if at_once:
            worth = gain > 0
        else:
            note = parse_note(await self._plans.note())
            worth, note = consider(note, gain, now, today.made if today else 0.0, self._terms.resize)
            await self._plans.keep_note(msgspec.json.encode(note))
        if not worth:
            return f"another plan would save {_percent(gain)} of the time: not worth a change now"
        return await self._write(stored, best, now, gain)

    async def _write(self, stored: StoredPlan, best: PoolPlan, now: float, gain: float) -> str:
        least = stored.plan.min_workers if stored.plan else best.min_workers
        plan = msgspec.structs.replace(best, made=now, min_workers=least)
        written = await self._plans.write(plan, stored)
        if written is None:
            return "another planner has written a plan meanwhile: this one is dropped"
        line = f"plan {written.version}: {len(plan.workers)} workers, saves {_percent(gain)} of the time; {plan.reason}"
        missing = await self._plans.without_supervisor(hosts_of(written))
        return f"{line}; no supervisor on {', '.join(missing[:_NAMED])} ({len(missing)})" if missing else line

    async def _gain(
        self, today: PoolPlan | None, best: PoolPlan, mix: RecentMix, profiles: list[ProfileRecord], load: Load
    ) -> float:
        if today is None:
            return float("inf")
        rate = await asyncio.to_thread(self._planning.expected, today.workers, mix, profiles)
        rate = today.tokens_per_s if rate is None else rate
        start_s = await self._plans.start_seconds()
        change = change_between(today, best, _START_S if start_s is None else start_s, rate)
        return gain_of(rate, best.tokens_per_s, change, load, self._terms.resize.horizon_s)

    async def _watch(self) -> tuple[Mapping[str, Heartbeat | None], list[ProfileRecord]]:
        """The latest heartbeats, and the profiles put right by what they showed."""
        speeds = LiveSpeeds()
        beats = await self._monitor.heartbeats()
        ends = asyncio.get_running_loop().time() + self._terms.watch_s
        while asyncio.get_running_loop().time() < ends:
            speeds.observe(beats)
            await asyncio.sleep(_BEAT_S)
            beats = await self._monitor.heartbeats()
        speeds.observe(beats)
        return beats, refit(await self._profiles.all(), speeds.slowdowns())


def _percent(gain: float) -> str:
    return "all" if gain == float("inf") else f"{100 * gain:.0f} %"
