"""What a pool did lately, from what the scheduler notes of ended jobs. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from broker.heartbeat import Heartbeat
from broker.recent_mix import RecentMix, parse_mix
from tokenyard.batch_timeline import mean_rates
from tokenyard.live.pool_bound import bound_tokens_per_s

#: So many intervals of this length (seconds).
INTERVALS, INTERVAL_S = 60, 15.0
#: The scheduler notes what ended this often (seconds): an entry tells of the time before it.
NOTE_S = 5.0
#: So far back are entries read (seconds).
LOOK_BACK_S = (INTERVALS + 2) * INTERVAL_S


@dataclass(frozen=True, slots=True)
class PoolPast:
    """What a pool did lately.

    Attributes:
        begin: seconds since the epoch on Redis' clock; ``width_s``: length of an interval, seconds.
        tokens_per_s: computed for the jobs that ended, in each interval.
        mix: lengths of these jobs.
        bound_tokens_per_s: the most that the devices can do of that mix, None where not known.
    """

    begin: float = 0.0
    width_s: float = INTERVAL_S
    tokens_per_s: tuple[float, ...] = ()
    mix: RecentMix = field(default_factory=RecentMix)
    bound_tokens_per_s: float | None = None


def past_of(entries: Sequence[tuple[float, str]], now: float, beats: Iterable[Heartbeat | None]) -> PoolPast:
    """The past up to the last interval of which all is noted.

    Args:
        entries: when each was written, seconds, and its text (see ``broker.recent_mix``), of ``LOOK_BACK_S``.
        now: seconds on the same clock.
        beats: the workers' last heartbeats.
    """
    begin = ((now - NOTE_S) // INTERVAL_S - INTERVALS) * INTERVAL_S
    written = np.array([at for at, _ in entries]) - begin
    tokens = np.array([parse_mix([text]).computed_tokens for _, text in entries], dtype=float)
    edges = np.arange(INTERVALS + 1, dtype=np.float64) * INTERVAL_S
    rates = mean_rates(written - NOTE_S, written, tokens / NOTE_S, edges)
    mix = parse_mix([text for _, text in entries])
    return PoolPast(begin, INTERVAL_S, tuple(map(float, rates)), mix, bound_tokens_per_s(mix, beats))
