"""What a pool has to do, from what Redis tells of it."""

from __future__ import annotations

from collections.abc import Mapping

from broker.heartbeat import Heartbeat
from broker.recent_mix import RecentMix
from broker.store.monitor import MonitorStore
from planner.resizing import Load

#: Tokens of a job where none has ended yet.
_TOKENS_A_JOB = 500.0
#: Of a job on a device, this much is still to be done, in the mean.
_LEFT = 0.5


async def pool_load(monitor: MonitorStore, mix: RecentMix, beats: Mapping[str, Heartbeat | None]) -> Load:
    """What waits or runs, in tokens by the mean of the recent mix; and what the workers do a second.

    Args:
        monitor: the pool.
        mix: jobs that ended lately.
        beats: the workers' last heartbeats.
    """
    waiting = sum((await monitor.waiting()).values())
    bound = sum((await monitor.device_depths([name for name, beat in beats.items() if beat is not None])).values())
    known = [beat for beat in beats.values() if beat is not None]
    rate = sum(beat.prompt_tokens_per_s + beat.output_tokens_per_s for beat in known)
    return Load((waiting + _LEFT * bound) * (mix.tokens_a_job or _TOKENS_A_JOB), rate)
