"""Malformed entries for every kind of key there is, and what must be said of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from broker import keys as names
from broker.keys import LEVELS, PoolKeys

BYTES = b"\xff\xfe"
BATCH = "b"
JOB = "b.x"

#: Of streams.
ENTRIES: list[dict[Any, Any]] = [
    {"what": "is this"},
    {BYTES: BYTES},
    {"": ""},
    {"job": "", "batch": "", "priority": "normal", "body_bytes": "0", "max_tokens": "0"},
    {"job": BYTES, "batch": BYTES, "priority": "normal", "body_bytes": "1", "max_tokens": "1"},
    {"job": JOB, "batch": BATCH, "priority": "normal", "body_bytes": "9" * 400, "max_tokens": "9" * 400},
    {"job": JOB, "prompt_tokens": "9" * 400, "output_tokens": "-1"},
    {"kind": "completed", "worker": "w0", "jobs": "a:b:c:d e"},
    {"kind": "completed", "worker": "w0", "jobs": "x:999999999:999999999:999999999"},
    {"kind": "returned", "worker": "nobody", "jobs": "x " * 1000},
    {"kind": "dropped", "worker": "w0"},
    {"kind": "cancelled", "batch": "none"},
    {"kind": "worker", "worker": BYTES},
    {"order": "cancel"},
    {"order": "cancel_job", "job": "x", "entry": "9"},
    {"order": BYTES},
    {"job": "x", "custom_id": "x", "status_code": "many", "worker": "", "attempt": "1", "submitted": "1"},
    {"job": "x", "custom_id": "x", "status_code": "many", "attempt": "1", "submitted": "1", "started": "1"},
    {"ended": "1:2:3 4:5:6:7 x"},
    {"ended": "9" * 5000},
    {"news": "[]"},
    {"news": BYTES},
    {"news": '[["j", "r", -1, []]]'},
]
#: Of strings, and of the fields of hashes.
VALUES = [b"", BYTES, b"9" * 400, b"-1", b"nan", b"x" * 100_000, b"[]", b"{}", b'{"weight": -1, "max_running": "x"}']
#: Of sets, and of sorted sets, there with each of these scores.
MEMBERS: list[str | bytes] = ["", BYTES, "x" * 5000, JOB, BATCH, "%s%n", "../../x", "9" * 400, "a b\r\nDEL c", "ghost"]
SCORES = (1.0, -1.0, float("-inf"), float("inf"))

Kind = Literal["stream", "hash", "string", "set", "zset"]


@dataclass(frozen=True)
class Family:
    """Keys that are alike.

    Attributes:
        kind: of their values.
        of: those that are written to.
        told: what the log, or what a reader is told, must hold of it, as a regular expression; empty where nothing is
            told, and then ``why`` says why not.
        fields: of a hash, beside those that it has.
        spare: what is there is left as it is: other pools have it, too.
    """

    kind: Kind
    of: Callable[[PoolKeys], list[str]]
    told: str = ""
    why: str = ""
    fields: tuple[str, ...] = ()
    spare: bool = False


#: By what ``PoolKeys``, or the module, calls them.
FAMILIES: dict[str, Family] = {
    "MODELS": Family(
        "hash", lambda _: [names.MODELS], why="a model of a pool that is none is served by nobody", spare=True
    ),
    "POOLS": Family("set", lambda _: [names.POOLS], why="what is no pool's name is passed over by all at every look"),
    "requests": Family(
        "stream",
        lambda k: [k.requests(level) for level in LEVELS],
        r"requests:normal: removed entries that are no jobs",
    ),
    "tenants": Family("set", lambda k: [k.tenants], r"tenants: passed over what is no tenant"),
    "terms": Family("hash", lambda k: [k.terms], r"terms of tenant", fields=("acme", "x y")),
    "job": Family(
        "hash", lambda k: [k.job(JOB)], why="read with its entry of a queue: see forge_jobs", fields=("state",)
    ),
    "body": Family("string", lambda k: [k.body(JOB)], why="read with its entry of a queue: see forge_jobs"),
    "batch": Family("hash", lambda k: [k.batch(BATCH)], why="a count that is none is 0", fields=("total", "state")),
    "results": Family("stream", lambda k: [k.results(BATCH)], r"skipped entries that are no results"),
    "tokens": Family("stream", lambda k: [k.tokens(BATCH)], r"skipped entries that are no news"),
    "delayed": Family("zset", lambda k: [k.delayed], r"delayed: removed what is no delayed job"),
    "windows": Family("zset", lambda k: [k.windows], r"windows: removed batches that are not there"),
    "held_bytes": Family("string", lambda k: [k.held_bytes], why="a number that is none is 0"),
    "dead": Family("zset", lambda k: [k.dead], why="a member without a letter is as one whose letter expired"),
    "letter": Family(
        "hash", lambda k: [k.letter(JOB), k.letter("%s%n")], r"is no dead letter: skipped", fields=("batch", "history")
    ),
    "given_up": Family(
        "hash", lambda k: [k.given_up], why="what is no reason with a number is not counted", fields=("x",)
    ),
    "fence": Family("string", lambda k: [k.fence], why="nobody reads it"),
    "batches": Family("zset", lambda k: [k.batches], why="only batches that are there are shown; others are removed"),
    "ended": Family("hash", lambda k: [k.ended(BATCH)], why="what is no cursor is no result", fields=("x",)),
    "device": Family("stream", lambda k: [k.device("w0")], r"device:w0: removed entries that are no jobs"),
    "control": Family("stream", lambda k: [k.control("w0")], r"order \{"),
    "losers": Family(
        "hash", lambda k: [k.losers("w0")], why="asked only for entries that a worker has", fields=("1-1",)
    ),
    "worker": Family(
        "hash",
        lambda k: [k.worker("w0"), k.worker("ghost")],
        r"heartbeat of worker 'ghost' cannot be read|worker 'ghost' is dead",
        fields=("state", "seen"),
    ),
    "workers": Family("zset", lambda k: [k.workers], r"is dead \(there is no heartbeat\)"),
    "profiles": Family("hash", lambda k: [k.profiles], r"skipped the profile", fields=("x",)),
    "plan": Family("hash", lambda k: [k.plan], r"the plan|plan: ", fields=("plan", "version")),
    "recent": Family("stream", lambda k: [k.recent], r"recent: skipped what cannot be read"),
    "starts": Family("hash", lambda k: [k.starts], r"starts: skipped what cannot be read", fields=("h",)),
    "looks": Family("string", lambda k: [k.looks], r"looks: skipped what cannot be read"),
    "turn": Family("string", lambda k: [k.turn], r"turn never ends"),
    "host": Family("string", lambda k: [k.host("h")], why="only that it is there counts"),
    "arq": Family(
        "zset", lambda k: [k.arq], r"the queue .*:arq holds what arq cannot read|job .* expired|function .* not found"
    ),
    "events": Family("stream", lambda k: [k.events], r"event [0-9-]+ is malformed, skipped"),
    "lease": Family(
        "hash", lambda k: [k.lease], r"lost the lease|took over pool", fields=("owner", "epoch", "renewed")
    ),
    "epoch": Family("string", lambda k: [k.epoch], why="a number that is none is replaced by a higher one"),
}


def families_in_use() -> set[str]:
    """Every kind of key that ``broker.keys`` can name."""
    of_pools = {name for name in vars(PoolKeys) if not name.startswith("_")} - {"pool", "prefix"}
    return of_pools | {
        name for name, value in vars(names).items() if isinstance(value, str) and value.startswith("ty:")
    }


async def write_malformed(redis: Any, keys: PoolKeys, name: str, turn: int) -> Counter[str]:
    """Write malformed entries of one family; those with one value at a time get another each turn. Counts them."""
    family, wrote = FAMILIES[name], Counter[str]()
    for key in family.of(keys):
        wrote[name] += await _WRITERS[family.kind](redis, key, family, turn)
    return wrote


async def _write_stream(redis: Any, key: str, family: Family, turn: int) -> int:
    for fields in ENTRIES:
        await redis.xadd(key, fields)
    return len(ENTRIES)


async def _write_hash(redis: Any, key: str, family: Family, turn: int) -> int:
    fields = [*([] if family.spare else await redis.hkeys(key)), *(field.encode() for field in family.fields)]
    for shift, field in enumerate(fields):
        await redis.hset(key, field, VALUES[(turn + shift) % len(VALUES)])
    await redis.hset(key, BYTES, BYTES)
    return len(fields) + 1


async def _write_string(redis: Any, key: str, family: Family, turn: int) -> int:
    await redis.set(key, VALUES[turn % len(VALUES)])
    return 1


async def _write_set(redis: Any, key: str, family: Family, turn: int) -> int:
    await redis.sadd(key, *MEMBERS)
    return len(MEMBERS)


async def _write_zset(redis: Any, key: str, family: Family, turn: int) -> int:
    await redis.zadd(key, {member: SCORES[(turn + n) % len(SCORES)] for n, member in enumerate(MEMBERS)})
    return len(MEMBERS)


_WRITERS: dict[Kind, Callable[[Any, str, Family, int], Any]] = {
    "stream": _write_stream,
    "hash": _write_hash,
    "string": _write_string,
    "set": _write_set,
    "zset": _write_zset,
}
