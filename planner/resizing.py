"""Is a new plan worth a change of the pool? Pure.

A pool that is changed serves less while workers restart. What waits then, and what comes meanwhile, is delayed. So two
times are compared: that in which today's plan would do the work of a horizon, and that in which the change and the new
plan would do it,

    W = backlog + T * arriving        tokens
    today = W / r0                    seconds
    changed = c + (W - c * r_c) / r1  seconds, where W > c * r_c

with rates r0 and r1 (tokens a second), c the seconds of the change and r_c the rate during it. A gain must be there in
several looks one after another, and some time must have passed since the last change: noise does not move the pool, and
a load that swings faster than that does not either.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import msgspec

from broker.pool_plan import PlannedWorker, PoolPlan


@dataclass(frozen=True, slots=True)
class ResizeTerms:
    """When a change is worth it.

    Attributes:
        horizon_s: seconds of work that a change must pay off in.
        least_gain: share of the time that it must save.
        least_interval_s: seconds between two changes.
        looks: looks, one after another, that must see the gain.
        hold_s: seconds that lie between the first and the last of these.
    """

    horizon_s: float = 1800.0
    least_gain: float = 0.08
    least_interval_s: float = 600.0
    looks: int = 3
    hold_s: float = 240.0


@dataclass(frozen=True, slots=True)
class Load:
    """What the pool has to do.

    Attributes:
        backlog_tokens: prompt and output tokens that wait or run, as far as can be told.
        tokens_per_s: tokens a second that arrive, or are done, lately.
    """

    backlog_tokens: float
    tokens_per_s: float


class Note(msgspec.Struct, frozen=True):
    """What one look leaves for the next.

    Attributes:
        looks: looks, one after another, that saw the gain.
        since: when the first of these was, seconds on Redis' clock.
    """

    looks: int = 0
    since: float = 0.0


@dataclass(frozen=True, slots=True)
class Change:
    """What a change does to the pool.

    Attributes:
        seconds: how long it takes: workers are replaced one after another.
        tokens_per_s: what the pool does meanwhile.
    """

    seconds: float
    tokens_per_s: float


def key_of(worker: PlannedWorker) -> str:
    """What a worker is: two with the same key need not be restarted for each other."""
    parts = [worker.host, worker.name, *worker.options, str(worker.tensor_parallel), *map(str, worker.devices)]
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=8).hexdigest()


def same_workers(one: PoolPlan, other: PoolPlan) -> bool:
    """Whether two plans run the same, and nothing on the same hosts."""
    same_idle = set(one.idle_hosts) == set(other.idle_hosts)
    return same_idle and {key_of(w) for w in one.workers} == {key_of(w) for w in other.workers}


def change_between(today: PoolPlan, new: PoolPlan, start_s: float, today_tokens_per_s: float) -> Change:
    """What the way from one plan to the other costs.

    Hosts replace their workers one after another, each host beside the others; while one starts, the one before it may
    be gone.

    Args:
        start_s: seconds from a worker's start until it is ready.
        today_tokens_per_s: what today's workers do together.
    """
    kept = {key_of(w) for w in today.workers} & {key_of(w) for w in new.workers}
    started: dict[str, int] = {}
    for worker in new.workers:
        if key_of(worker) not in kept:
            started[worker.host] = started.get(worker.host, 0) + 1
    if not started:
        return Change(0.0, today_tokens_per_s)
    gone = [w for w in today.workers if key_of(w) not in kept]
    down = len({w.host for w in gone}) / max(len(today.workers), 1)
    return Change(max(started.values()) * start_s, today_tokens_per_s * max(0.0, 1.0 - down))


def gain_of(today_tokens_per_s: float, new_tokens_per_s: float, change: Change, load: Load, horizon_s: float) -> float:
    """Share of the time that a change saves, restarts and what they delay counted in; negative where it loses.

    Infinite where today's pool does nothing, and the new one something.
    """
    if new_tokens_per_s <= 0:
        return -math.inf
    if today_tokens_per_s <= 0:
        return math.inf
    work = load.backlog_tokens + horizon_s * load.tokens_per_s
    if work < 1:  # not a token to do, nothing to delay: as if there were a horizon's work
        work = horizon_s * today_tokens_per_s
    today = work / today_tokens_per_s
    meanwhile = change.seconds * change.tokens_per_s
    changed = change.seconds + max(work - meanwhile, 0.0) / new_tokens_per_s
    return 1.0 - changed / today


def consider(note: Note, gain: float, now: float, changed: float, terms: ResizeTerms) -> tuple[bool, Note]:
    """Whether to change now, and what to remember until the next look.

    Args:
        note: what the look before left.
        gain: see ``gain_of``.
        now: seconds on Redis' clock.
        changed: when the plan of today was made, likewise; 0 where there is none.
        terms: when a change is worth it.
    """
    if gain == math.inf:
        return True, Note()
    if not gain >= terms.least_gain:
        return False, Note()
    since = note.since if note.looks and note.since <= now else now
    seen = Note(note.looks + 1 if note.looks else 1, since)
    ripe = seen.looks >= terms.looks and now - since >= terms.hold_s and now - changed >= terms.least_interval_s
    return (True, Note()) if ripe else (False, seen)


def parse_note(text: bytes) -> Note:
    """A note from its JSON; an empty one where it is none (anyone can write to Redis)."""
    try:
        note = msgspec.json.decode(text, type=Note)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return Note()
    return note if note.looks >= 0 and math.isfinite(note.since) else Note()
