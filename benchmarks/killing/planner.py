"""A planner that can be killed: the live one, over a choice of two pools instead of an inventory.

``python -m benchmarks.killing.planner REDIS_URL POOL EVERY_S`` plans until it is ended.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence

from broker.connection import connected
from broker.pool_plan import PlannedWorker, PoolPlan
from broker.profiles import ProfileRecord
from broker.recent_mix import RecentMix
from broker.settings import load_settings
from planner.replanning import LookTerms
from planner.resizing import ResizeTerms
from tokenyard.planner_process import process_of

HOST = "bench"
MODEL = "simulated"
#: What ended in the last so many seconds is the mix.
MIX_S = 2.0
WORKERS = 5
#: Up to so many tokens a job, the last worker has few seats.
_SHORT_TOKENS = 1000.0
#: Tokens a second of the pool that suits the mix, and of the other.
_RIGHT, _WRONG = 2000.0, 1000.0


class Menu:
    """Two pools of workers with a device each; the last has few seats in one and many in the other."""

    def propose(self, mix: RecentMix, profiles: Sequence[ProfileRecord]) -> PoolPlan:
        """The one for this mix."""
        del profiles
        workers = tuple(
            PlannedWorker(f"w{n}", HOST, _options(n, mix), devices=(n,), tokens_per_s=_RIGHT / WORKERS)
            for n in range(WORKERS)
        )
        reason = f"{mix.tokens_a_job:.0f} tokens a job"
        return PoolPlan(1, 0.0, workers, _RIGHT, reason=reason, min_workers=WORKERS)

    def expected(
        self, workers: Sequence[PlannedWorker], mix: RecentMix, profiles: Sequence[ProfileRecord]
    ) -> float | None:
        """What one of them does on this mix."""
        del profiles
        return _RIGHT if workers[-1].options == _options(WORKERS - 1, mix) else _WRONG


def _options(number: int, mix: RecentMix) -> tuple[str, ...]:
    many = number < WORKERS - 1 or mix.tokens_a_job > _SHORT_TOKENS
    return ("--engine", "simulated", "--seats", "16" if many else "8")


async def plan(redis_url: str, pool: str, every_s: float) -> None:
    """Plan for ever, and change for any gain at once."""
    settings = load_settings(redis_url=redis_url, pool=pool)
    terms = LookTerms(MIX_S, 0.0, ResizeTerms(looks=1, hold_s=0.0, least_interval_s=0.0))
    async with connected(redis_url) as redis:
        await process_of(redis, settings, Menu(), MODEL, every_s=every_s, look=terms).run()


if __name__ == "__main__":
    asyncio.run(plan(sys.argv[1], sys.argv[2], float(sys.argv[3])))
