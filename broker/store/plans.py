"""What planner and supervisors share: the plan, the recent mix, and how long workers take to start."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Iterable, Sequence
from typing import Any, NamedTuple

import msgspec
import redis.exceptions as rex

from broker import scripts
from broker.connection import RedisClient, clock
from broker.errors import UsageError
from broker.keys import PoolKeys
from broker.plan_record import parse_plan, plan_text
from broker.pool_plan import MAX_PLAN_BYTES, PoolPlan
from broker.recent_mix import RecentMix, parse_mix

log = logging.getLogger(__name__)

#: Entries of the recent mix that are read at most: as many as the scheduler keeps.
RECENT_ENTRIES = 1000
#: What is known of starts, and the planner's note between two looks, live this long after the last word (seconds).
_STARTS_TTL_S = 86_400
_NOTE_TTL_S = 3600
_NOTE_BYTES = 4096
#: A host without a word of its supervisor for so long has none (seconds).
HOST_TTL_S = 30
_LONGEST_START_S = 86_400.0
_VERSION_CHARS = 20
#: Values that cannot be read: so many are remembered, so as to tell of them once.
_MOST_TOLD = 1000
_MOST_VERSION = 2**52


class StoredPlan(NamedTuple):
    """The plan as it is stored.

    Attributes:
        token: what ``PlanStore.write`` must be given to replace it; empty where there is none.
        plan: None where there is none, or none that can be read.
        problem: why it cannot be read, in one line; empty where it can, or there is none.
    """

    token: str
    plan: PoolPlan | None
    problem: str = ""


class PlanStore:
    """The plan of one pool, and what its planner goes by."""

    def __init__(self, redis: RedisClient, pool: str) -> None:
        self._redis = redis
        self.keys = PoolKeys(pool)
        self._write = scripts.load(redis, "write_plan")
        self._told: set[str] = set()  # keys of another kind that were told of
        self._skipped: set[tuple[str, bytes]] = set()  # likewise, values that cannot be read

    async def token(self) -> str:
        """The stored plan's version as text: cheap to look at often."""
        return _text(await self._hash_field(self.keys.plan, "version"))

    async def read(self) -> StoredPlan:
        """The plan that is stored."""
        token = await self.token()
        size = await self._look(self._redis.hstrlen(self.keys.plan, "plan"), self.keys.plan) or 0
        if not token and not size:
            return StoredPlan("", None)
        if size > MAX_PLAN_BYTES:
            return StoredPlan(token, None, f"the plan in {self.keys.plan} is longer than {MAX_PLAN_BYTES:,} bytes")
        text = await self._hash_field(self.keys.plan, "plan")
        try:
            return StoredPlan(token, parse_plan(text or b""))
        except UsageError as error:
            return StoredPlan(token, None, f"{self.keys.plan}: {error}")

    async def write(self, plan: PoolPlan, over: StoredPlan) -> PoolPlan | None:
        """Write a plan in the place of the one that was read; its version is the next.

        Returns:
            The plan as it is stored now; None where another was written meanwhile: nothing happened then.

        Raises:
            UsageError: it is no plan.
        """
        token = over.token
        before = over.plan.version if over.plan else int(token) if token.isascii() and token.isdigit() else 0
        plan = msgspec.structs.replace(plan, version=before + 1 if before < _MOST_VERSION else 1)
        args = [self.keys.prefix, over.token, plan.version, plan_text(plan)]
        return plan if await self._write(args=args) == 1 else None

    async def recent_mix(self, within_s: float) -> RecentMix:
        """Jobs that ended in the last ``within_s`` seconds, by length."""
        now = await clock(self._redis, self.keys.prefix)
        return parse_mix([text for _, text in await self.ended_since(now - within_s)])

    async def ended_since(self, since: float) -> list[tuple[float, str]]:
        """Jobs that ended since then (seconds since the epoch on Redis' clock), the latest first.

        Each entry is the time when it was written, some seconds after the jobs had ended, and a text for ``parse_mix``.
        """
        least = max(int(since * 1000), 0)
        call = self._redis.xrevrange(self.keys.recent, "+", str(least), count=RECENT_ENTRIES)
        entries = await self._look(call, self.keys.recent) or []
        texts = {entry: _text(fields.get(b"ended"), 65_536) for entry, fields in entries}
        self._tell_of_bad(self.keys.recent, [entry for entry, text in texts.items() if not parse_mix([text]).classes])
        return [(int(entry.partition(b"-")[0]) / 1000, text) for entry, text in texts.items()]

    async def note_start(self, host: str, seconds: float) -> None:
        """Keep how long the last worker of this host took from its start until it was ready."""
        await self._look(self._redis.hset(self.keys.starts, host, f"{seconds:.1f}"), self.keys.starts)
        await self._redis.expire(self.keys.starts, _STARTS_TTL_S)

    async def start_seconds(self) -> float | None:
        """The longest of the hosts' last starts; None where none is known."""
        found = await self._look(self._redis.hvals(self.keys.starts), self.keys.starts) or []
        self._tell_of_bad(self.keys.starts, [text for text in found if _seconds(text) is None])
        return max((s for s in map(_seconds, found) if s is not None), default=None)

    async def note(self) -> bytes:
        """What the planner noted at its last look; empty where it did not, or too long ago."""
        key = self.keys.looks
        size = await self._look(self._redis.strlen(key), key) or 0
        if size > _NOTE_BYTES:
            self._tell_of_bad(key, [b"a note of %d bytes" % size])
            return b""
        text = await self._look(self._redis.get(key), key) or b""
        if text and not _is_object(text):
            self._tell_of_bad(key, [text])
            return b""
        return text

    async def keep_note(self, text: bytes) -> None:
        """Note something for the planner's next look."""
        await self._redis.set(self.keys.looks, text, ex=_NOTE_TTL_S)

    async def mark_hosts(self, hosts: Iterable[str]) -> None:
        """Say that a supervisor carries plans out for these hosts; forgotten after ``HOST_TTL_S`` seconds."""
        pipe = self._redis.pipeline(transaction=False)
        for host in hosts:
            pipe.set(self.keys.host(host), "1", ex=HOST_TTL_S)
        await pipe.execute()

    async def without_supervisor(self, hosts: Sequence[str]) -> list[str]:
        """Those of these hosts for which no supervisor carries plans out just now."""
        if not hosts:
            return []
        marks = await self._redis.mget([self.keys.host(host) for host in hosts])
        return [host for host, mark in zip(hosts, marks, strict=True) if mark is None]

    async def take_turn(self, host: str, ttl_s: float) -> bool:
        """Whether this host may stop serving for a while: one at a time; the turn ends by itself after ``ttl_s``."""
        if await self._redis.set(self.keys.turn, host, nx=True, px=int(ttl_s * 1000)):
            return True
        if _text(await self._look(self._redis.get(self.keys.turn), self.keys.turn), 256) != host:
            if await self._redis.pttl(self.keys.turn) < 0:  # written by hand: no turn of ours is for ever
                log.warning("%s never ends: it ends in %.0f s", self.keys.turn, ttl_s)
                await self._redis.pexpire(self.keys.turn, int(ttl_s * 1000))
            return False
        await self._redis.pexpire(self.keys.turn, int(ttl_s * 1000))
        return True

    async def end_turn(self, host: str) -> None:
        """Let another host have its turn."""
        if _text(await self._look(self._redis.get(self.keys.turn), self.keys.turn), 256) == host:
            await self._redis.delete(self.keys.turn)

    def _tell_of_bad(self, key: str, values: Sequence[bytes]) -> None:
        """Name what cannot be read, once: it is read again at every look."""
        if new := [value for value in values if (key, value) not in self._skipped][: _MOST_TOLD - len(self._skipped)]:
            log.warning("%s: skipped what cannot be read: %s", key, scripts.names(new))
            self._skipped.update((key, value) for value in new)

    async def _hash_field(self, key: str, field: str) -> bytes | None:
        return await self._look(self._redis.hget(key, field), key)

    async def _look(self, answer: Awaitable[Any], key: str) -> Any:
        """What Redis answers; None where somebody made the key another kind of value."""
        try:
            found = await answer
        except rex.ResponseError as error:
            if not str(error).startswith("WRONGTYPE"):
                raise
            if key not in self._told:
                log.warning("%s is of another kind than it should be: delete it", key)
            self._told.add(key)
            return None
        self._told.discard(key)
        return found


def _text(value: bytes | None, most: int = _VERSION_CHARS) -> str:
    return (value or b"")[:most].decode(errors="surrogateescape")


def _is_object(text: bytes) -> bool:
    """Whether a text is a JSON object."""
    try:
        return isinstance(msgspec.json.decode(text), dict)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False


def _seconds(value: bytes) -> float | None:
    try:
        seconds = float(value)
    except ValueError:
        return None
    return seconds if 0 <= seconds <= _LONGEST_START_S else None
