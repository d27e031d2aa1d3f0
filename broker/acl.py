"""Redis users with the least rights that each role needs, as rules of Redis' ACL (7.0 or newer). Pure.

Scripts run with the rights of who calls them: Redis checks the command and the keys of every call inside a script. So
a role has just the commands that its scripts use, each on just the kinds of keys that they use it on (a *selector*
each, see https://redis.io/docs/latest/operate/oss_and_stack/management/security/acl/), and ``EVALSHA`` gives it nothing
beyond that. No role has a command that looks through all keys, changes the server, or ends another's connection.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import StrEnum
from hashlib import sha256
from typing import NamedTuple

from broker import keys
from broker.errors import UsageError
from broker.keys import FRESH_LEVELS, PoolKeys
from broker.tenant_names import DEFAULT_TENANT, SEPARATOR, check_tenant

#: Without a key: what belongs to a connection (but not to look at others' or to end them), ask the time, send scripts,
#: find one's way in a Redis Cluster.
_ALWAYS = "+@connection -client +time +script|load +command +cluster|slots +cluster|shards"


class Role(StrEnum):
    """Who talks to Redis."""

    CLIENT = "client"
    SCHEDULER = "scheduler"
    WORKER = "worker"
    SUPERVISOR = "supervisor"
    PLANNER = "planner"
    MONITOR = "monitor"
    GATEWAY = "gateway"
    OPERATOR = "operator"


class Grant(NamedTuple):
    """Commands on kinds of keys, both as words separated by blanks.

    A kind is a name of the table in ``broker.keys`` in small letters: ``job:*`` for every job, ``requests:low`` for
    that stream alone. One that begins with ``/`` is not a pool's key.
    """

    commands: str
    kinds: str


#: How a job goes back or ends, for whoever may be the one to see to it (``leave`` and ``finish`` in lib.lua).
_ENDINGS = (
    Grant("del", "job:* body:*"),
    Grant("exists hget hmget hset hdel hincrby", "job:*"),
    Grant("strlen get", "body:*"),  # a dead letter has the body
    Grant("hset expire del", "letter:*"),
    Grant("zadd expire zremrangebyscore zcard zrange zremrangebyrank", "dead"),
    Grant("hlen hexists hincrby", "given_up"),
    Grant("zadd", "delayed"),
    Grant("decrby set", "held_bytes"),
    Grant("xadd", "requests:returned results:* events"),
    Grant("expire", "results:* ended:*"),
    Grant("hset", "ended:*"),
    Grant("exists hget hmget hset hincrby expire", "batch:*"),
    Grant("exists xlen xpending xrange xack xdel xadd", "device:*"),
)
#: How a job ends that somebody cancels: it leaves no dead letter.
_ENDING_BY_HAND = (
    Grant("del", "job:* body:*"),
    Grant("hmget", "job:*"),
    Grant("strlen", "body:*"),
    Grant("decrby set", "held_bytes"),
    Grant("xadd", "results:* events"),
    Grant("expire", "results:* ended:*"),
    Grant("hset", "ended:*"),
    Grant("hmget hset hincrby expire", "batch:*"),
    Grant("xack xdel", "device:*"),
)
#: What tells how the workers are.
_WORKERS_SEEN = (Grant("zrange", "workers"), Grant("hgetall", "worker:*"))
_POOLS_SEEN = (Grant("smembers", "/ty:pools"), Grant("hgetall", "/ty:models"))
_LOAD_SEEN = (
    Grant("smembers", "tenants"),
    Grant("xlen", "requests:* device:*"),
    Grant("xrevrange", "recent"),
    Grant("hvals", "starts"),
)
_PLAN_SEEN = (Grant("hget hstrlen", "plan"), Grant("mget", "host:*"))

_CLIENT = (
    *_POOLS_SEEN,
    *_WORKERS_SEEN,
    Grant("set exists", "body:*"),
    Grant("hset", "job:*"),
    Grant("xadd", "requests:high requests:normal requests:low events control:*"),
    Grant("exists persist expire del", "batch:* results:* ended:*"),
    Grant("hexists hmget", "ended:*"),
    Grant("hget hmget hgetall hset hsetnx hincrby", "batch:*"),
    Grant("zadd", "windows"),
    Grant("sadd", "tenants"),
    Grant("zadd zrem", "batches"),
    Grant("xread", "results:*"),
    Grant("expire", "control:*"),
    Grant("zcard", "delayed"),
    Grant("xlen", "requests:high requests:normal requests:low requests:returned"),
    Grant("get set incrby", "held_bytes"),
    Grant("set pexpire expire", "fence"),
)
_SCHEDULER = (
    *_POOLS_SEEN,
    *_WORKERS_SEEN,
    *_ENDINGS,
    Grant("type hget hmget hset pexpire pttl del", "lease"),
    Grant("incr set", "epoch"),
    Grant("zrange zrangebyscore zrem", "delayed windows"),
    Grant("xadd expire", "control:*"),
    Grant("xgroup|create xreadgroup xread xlen xack xdel", "requests:*"),
    Grant("xread xrevrange", "events"),
    Grant("hget hmget del", "worker:*"),
    Grant("del", "worker:* device:* control:* losers:*"),
    Grant("zscore zrem", "workers"),
    Grant("zrange zrem", "batches"),
    Grant("xadd", "recent"),
    Grant("smembers srem", "tenants"),
    Grant("hgetall", "terms"),
    Grant("del", "requests:high:* requests:normal:* requests:low:*"),
)
_WORKER = (
    *_ENDINGS,
    Grant("sadd sismember", "/ty:pools"),
    Grant("hget hsetnx", "/ty:models"),
    Grant("get", "body:*"),
    Grant("exists hget hmget hset pexpire", "worker:*"),
    Grant("zadd zrem", "workers"),
    Grant("xgroup|create xreadgroup xread", "device:*"),
    Grant("xread xadd expire", "control:*"),
    Grant("hget hset hdel expire", "losers:*"),
    Grant("del", "worker:* device:* control:* losers:*"),
    Grant("hget", "profiles"),
    Grant("xadd expire", "tokens:*"),
)
_SUPERVISOR = (
    *_WORKER,  # the workers that it starts use its address
    *_WORKERS_SEEN,
    *_LOAD_SEEN,
    *_PLAN_SEEN,
    Grant("hset expire", "starts"),
    Grant("set get pttl pexpire del", "turn"),
    Grant("set", "host:*"),
)
#: Of arq, whose keys are no pool's; ``arq:*`` of one pool's planner has nothing that another's could not ask for.
_ARQ = "/arq:* arq arq:health-check"
_PLANNER = (
    *_WORKERS_SEEN,
    *_LOAD_SEEN,
    *_PLAN_SEEN,
    Grant("type del hset", "plan"),
    Grant("strlen get set", "looks"),
    Grant("hget hgetall hset", "profiles"),
    Grant("watch exists get set psetex setex del incr incrby expire pexpire", _ARQ),
    Grant("zadd zrem zscore zcard zincrby zrange zrangebyscore zremrangebyscore", _ARQ),
)
_MONITOR = (
    *_POOLS_SEEN,
    *_WORKERS_SEEN,
    *_LOAD_SEEN,
    *_PLAN_SEEN,
    Grant("hgetall", "batch:* job:* lease profiles terms given_up"),
    Grant("hget hmget", "lease worker:*"),
    Grant("exists", "batch:*"),
    Grant("zrange zrevrange zcard", "batches workers delayed dead"),
    Grant("get", "held_bytes"),
    Grant("strlen", "body:*"),
    Grant("xpending", "device:*"),
    Grant("xread xrevrange", "events"),
    Grant("xrange", "requests:*"),
)
#: For all tenants: the API keys that it is given say whose a request is.
_GATEWAY = (
    *_CLIENT,
    *_MONITOR,
    Grant("xadd", "requests:high:* requests:normal:* requests:low:*"),
    Grant("xread", "results:* tokens:*"),
)
#: For all tenants, too: looks, cancels, prioritizes, pauses and drains, grants shares, tries dead letters again.
_OPERATOR = (
    *_MONITOR,
    # cancel: jobs end, or their batch does; and what runs of them is aborted
    *_ENDING_BY_HAND,
    Grant("xadd expire", "control:*"),
    Grant("hset expire", "losers:*"),
    Grant("zrem", "delayed"),
    # prioritize
    Grant("hget hset", "job:*"),
    Grant("xadd xack xdel", "requests:high* requests:normal* requests:low*"),
    # tenants, dead letters: read, dropped, or submitted once more
    Grant("hset", "terms"),
    Grant("hmget hexists hget del", "letter:*"),
    Grant("zrem", "dead"),
    Grant("set exists", "body:*"),
    Grant("exists persist", "batch:* results:* ended:*"),
    Grant("hexists", "ended:*"),
    Grant("hget hsetnx", "batch:*"),
    Grant("zadd", "batches windows"),
    Grant("sadd", "tenants"),
    Grant("xlen", "requests:returned"),
    Grant("get incrby", "held_bytes"),
)

GRANTS: dict[Role, tuple[Grant, ...]] = {
    Role.CLIENT: _CLIENT,
    Role.SCHEDULER: _SCHEDULER,
    Role.WORKER: _WORKER,
    Role.SUPERVISOR: _SUPERVISOR,
    Role.PLANNER: _PLANNER,
    Role.MONITOR: _MONITOR,
    Role.GATEWAY: _GATEWAY,
    Role.OPERATOR: _OPERATOR,
}
#: And without a key, beyond ``_ALWAYS``.
_EXTRA = {
    Role.PLANNER: "+multi +exec +unwatch +info +dbsize",  # arq's
    Role.MONITOR: "+info",
    Role.GATEWAY: "+info",
    Role.OPERATOR: "+info",
}


class AclUser(NamedTuple):
    """A Redis user: its name, and its rules without a password."""

    name: str
    rules: tuple[str, ...]


def user_of(role: Role, pools: Sequence[str], *, tenant: str = DEFAULT_TENANT, prefix: str = "tokenyard") -> AclUser:
    """The user of a role.

    Args:
        role: what it does.
        pools: the pools that it does it in.
        tenant: whose jobs it may submit and see; for a client.
        prefix: what the user's name begins with.

    Raises:
        UsageError: a tenant cannot be called so, or another role was given one.
    """
    check_tenant(tenant)
    if tenant != DEFAULT_TENANT and role is not Role.CLIENT:
        raise UsageError(f"a {role.value} works for all tenants: leave --tenant to the client")
    name = f"{prefix}-{role.value}" + (f"-{tenant}" if tenant != DEFAULT_TENANT else "")
    by_kinds = _merged(GRANTS[role])
    selectors = [_selector(commands, kinds, pools, role, tenant) for kinds, commands in by_kinds.items()]
    scripts = " ".join(f"~{PoolKeys(pool).prefix}" for pool in pools)  # the key that every script declares
    alone = f"{_ALWAYS} {_EXTRA.get(role, '')}".split()
    return AclUser(name, ("resetchannels", "-@all", *alone, f"(+evalsha {scripts})", *selectors))


def acl_line(user: AclUser, password: str | None) -> str:
    """The user as a line of an ACL file, and as the words of ``ACL SETUSER`` after the first.

    It holds the password's SHA-256 alone; without one, the user is off until it is given one.
    """
    access = ("on", "#" + sha256(password.encode()).hexdigest()) if password else ("off",)
    return " ".join(("user", user.name, "reset", *access, *user.rules))


def setuser_command(line: str) -> str:
    """The same for redis-cli: every rule is one word of the shell."""
    _, name, rules = line.split(" ", 2)
    words = _rules_of(rules)
    return f"ACL SETUSER {name} " + " ".join(f'"{word}"' if " " in word else word for word in words)


def _rules_of(text: str) -> list[str]:
    """The rules of a line; a selector is one, with its blanks."""
    rules: list[str] = []
    inside = False
    for word in text.split(" "):
        if inside:
            rules[-1] += f" {word}"
        else:
            rules.append(word)
        inside = (inside or word.startswith("(")) and not word.endswith(")")
    return rules


def _merged(grants: Iterable[Grant]) -> dict[str, list[str]]:
    """Commands by the kinds of keys they may be used on, so that each is granted once."""
    by_kinds: dict[str, list[str]] = {}
    for grant in grants:
        commands = by_kinds.setdefault(grant.kinds, [])
        commands += [command for command in grant.commands.split() if command not in commands]
    return by_kinds


def _selector(commands: list[str], kinds: str, pools: Sequence[str], role: Role, tenant: str) -> str:
    patterns = [
        f"~{pattern}"
        for kind in kinds.split()
        for pattern in ([kind[1:]] if kind.startswith("/") else [_pattern(p, kind, role, tenant) for p in pools])
    ]
    return f"({' '.join(f'+{command}' for command in commands)} {' '.join(patterns)})"


#: Kinds whose names begin with a batch's id.
_OF_BATCHES = ("job:*", "body:*", "batch:*", "results:*", "ended:*")

#: Kinds of which each tenant has its own.
_OF_TENANTS = tuple(f"requests:{level}" for level in FRESH_LEVELS)


def _pattern(pool: str, kind: str, role: Role, tenant: str) -> str:
    prefix = PoolKeys(pool).prefix
    if role is Role.CLIENT and kind in _OF_BATCHES:
        mine = "batch_*" if tenant == DEFAULT_TENANT else f"{tenant}{SEPARATOR}*"
        return prefix + kind[:-1] + mine
    if role is Role.CLIENT and kind in _OF_TENANTS and tenant != DEFAULT_TENANT:
        return f"{prefix}{kind}{SEPARATOR}{tenant}"
    return prefix + kind


assert keys.MODELS == "ty:models" and keys.POOLS == "ty:pools", "the rules above name them"
