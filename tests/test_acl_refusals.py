"""The users that ``tokenyard acl`` prints, on real servers: what each is refused."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import Any

import pytest
import redis.exceptions as rex
from acl_server import ACMES, MINE, POOL, AclServer, J, K, acl_server, binary_of

from broker.keys import PoolKeys


@pytest.fixture(params=["valkey", "redis"])
async def server(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[AclServer]:
    async with acl_server(binary_of(request.param), tmp_path, POOL) as running:
        yield running


#: role (and tenant) -> what it must not do.
FORBIDDEN: dict[str, list[list[str]]] = {
    "gateway": [
        # what is the scheduler's, the planner's and the workers' to say
        ["HSET", K.plan, "plan", "{}"],
        ["HSET", K.lease, "owner", "me"],
        ["XADD", K.requests("returned"), "*", "job", "x"],
        ["HSET", K.terms, "acme", "{}"],
        ["XADD", K.device("w"), "*", "job", "x"],
        ["XADD", K.tokens(MINE), "*", "news", "[]"],
        ["XADD", K.results(MINE), "*", "job", "x"],
    ],
    "client": [
        # what others asked and were answered
        ["XREAD", "STREAMS", K.results(ACMES), "0"],
        ["XRANGE", K.results(MINE), "-", "+"],
        ["HGETALL", K.batch(ACMES)],
        ["HGETALL", K.job(J)],
        ["GET", K.body(J)],
        ["DEL", K.results(ACMES)],
        ["SET", K.body(f"{ACMES}.x"), "b"],
        # to find out which batches there are
        ["ZRANGE", K.batches, "0", "-1"],
        ["ZREVRANGE", K.batches, "0", "-1"],
        ["XREAD", "STREAMS", K.events, "0"],
        ["XRANGE", K.requests("normal"), "-", "+"],
        ["XREAD", "STREAMS", K.requests("normal"), "0"],
        ["XRANGE", K.device("w"), "-", "+"],
        # to put in another's name, to pass by the queue, or to play another role
        ["XADD", f"{K.requests('normal')}:acme", "*", "job", "j"],
        ["XADD", K.requests("returned"), "*", "job", "j"],
        ["XADD", K.device("w"), "*", "job", J],
        ["XADD", K.results(MINE), "*", "job", J],
        ["HSET", K.worker("w"), "state", "ready"],
        ["HSET", "ty:models", "m", "other"],
        ["HSET", K.plan, "plan", "{}"],
        ["HSET", K.lease, "owner", "me"],
        ["DEL", K.requests("normal")],
    ],
    "client-acme": [
        ["XREAD", "STREAMS", K.results(MINE), "0"],
        ["HGETALL", K.batch(MINE)],
        ["SET", K.body(J), "b"],
        ["HSET", K.job(J), "state", "queued"],
        ["XADD", K.requests("normal"), "*", "job", "j"],
        ["XADD", f"{K.requests('normal')}:other", "*", "job", "j"],
        ["DEL", K.batch(MINE)],
    ],
    "worker": [
        # to submit
        *(["XADD", K.requests(level), "*", "job", J] for level in ("high", "normal", "low")),
        ["SET", K.body(J), "b"],
        ["APPEND", K.body(J), "b"],
        ["ZADD", K.batches, "1", MINE],
        ["XREAD", "STREAMS", K.results(MINE), "0"],
        ["XRANGE", K.results(MINE), "-", "+"],
        ["DEL", K.results(MINE)],
        ["XDEL", K.results(MINE), "1-1"],
        ["HSET", K.lease, "owner", "me"],
        ["HSET", K.plan, "plan", "{}"],
        ["HSET", K.profiles, "x", "{}"],
        ["HSET", "ty:models", "m", "other"],
        ["XREADGROUP", "GROUP", "scheduler", "s", "STREAMS", K.requests("normal"), ">"],
    ],
    "scheduler": [
        ["SET", K.body(J), "b"],
        ["XREAD", "STREAMS", K.results(MINE), "0"],
        *(["XADD", K.requests(level), "*", "job", J] for level in ("high", "normal", "low")),
        ["HSET", K.worker("w"), "state", "ready"],
        ["HSET", K.plan, "plan", "{}"],
        ["HSET", K.profiles, "x", "{}"],
        ["XREADGROUP", "GROUP", "worker", "w", "STREAMS", K.device("w"), ">"],
        ["HSETNX", "ty:models", "m", "p"],
    ],
    "supervisor": [
        ["HSET", K.plan, "plan", "{}"],
        ["SET", K.body(J), "b"],
        ["XADD", K.requests("normal"), "*", "job", J],
        ["XREAD", "STREAMS", K.results(MINE), "0"],
        ["HSET", K.lease, "owner", "me"],
    ],
    "planner": [
        ["GET", K.body(J)],
        ["HGETALL", K.job(J)],
        ["XREAD", "STREAMS", K.results(MINE), "0"],
        ["XADD", K.requests("normal"), "*", "job", J],
        ["XADD", K.device("w"), "*", "job", J],
        ["HSET", K.worker("w"), "state", "ready"],
        ["SET", K.host("h"), "1"],
        ["HSET", K.lease, "owner", "me"],
        ["ZRANGE", K.batches, "0", "-1"],
    ],
    "operator": [
        # what was asked and answered, but for dead letters
        ["GET", K.body(J)],
        ["XREAD", "STREAMS", K.results(MINE), "0"],
        ["XRANGE", K.results(MINE), "-", "+"],
        ["DEL", K.results(MINE)],
        ["DEL", K.batch(MINE)],
        ["XREAD", "STREAMS", K.tokens(MINE), "0"],
        # to play another role
        ["XADD", K.device("w"), "*", "job", J],
        ["XADD", K.requests("returned"), "*", "job", J],
        ["XREADGROUP", "GROUP", "scheduler", "s", "STREAMS", K.requests("normal"), ">"],
        ["XREADGROUP", "GROUP", "worker", "w", "STREAMS", K.device("w"), ">"],
        ["DEL", K.requests("normal")],
        ["HSET", K.lease, "owner", "me"],
        ["HSET", K.worker("w"), "state", "ready"],
        ["HSET", K.plan, "plan", "{}"],
        ["HSET", K.profiles, "x", "{}"],
        ["HSET", K.letter(J), "body", "{}"],
        ["HSET", "ty:models", "m", "other"],
        ["SET", K.epoch, "1"],
    ],
    "monitor": [
        ["GET", K.body(J)],
        ["XREAD", "STREAMS", K.results(MINE), "0"],
        ["XRANGE", K.results(MINE), "-", "+"],
        ["HSET", K.batch(MINE), "state", "cancelled"],
        ["HSET", K.worker("w"), "state", "ready"],
        ["XADD", K.requests("normal"), "*", "job", J],
        ["XADD", K.control("w"), "*", "order", "cancel"],
        ["XADD", K.events, "*", "kind", "worker"],
        ["ZADD", K.batches, "1", MINE],
        ["DEL", K.batch(MINE)],
        ["HSET", K.plan, "plan", "{}"],
    ],
}
#: What no role may do: see all keys, change the server or its users, end others, leave this pool.
NOBODY: list[list[str]] = [
    ["KEYS", "*"],
    ["SCAN", "0"],
    ["RANDOMKEY"],
    ["FLUSHALL"],
    ["FLUSHDB"],
    ["CONFIG", "GET", "*"],
    ["CONFIG", "SET", "maxmemory", "1"],
    ["ACL", "LIST"],
    ["ACL", "SETUSER", "x"],
    ["CLIENT", "LIST"],
    ["CLIENT", "KILL", "TYPE", "normal"],
    ["MONITOR"],
    ["SHUTDOWN"],
    ["SAVE"],
    ["REPLICAOF", "NO", "ONE"],
    ["MODULE", "LIST"],
    ["SCRIPT", "FLUSH"],
    ["FUNCTION", "LIST"],
    ["EVAL", "return 1", "0"],
    ["PUBLISH", "c", "m"],
    ["SUBSCRIBE", "c"],
    ["SET", "elsewhere", "x"],
    ["GET", "elsewhere"],
    ["DUMP", K.body(J)],
    ["RENAME", K.body(J), "x"],
    ["COPY", K.body(J), "x"],
    ["SORT", K.batches],
    ["HGETALL", PoolKeys("other").worker("w")],
    ["XADD", PoolKeys("other").requests("normal"), "*", "job", J],
    ["EVALSHA", "0" * 40, "1", PoolKeys("other").prefix],
]

ROLES = ["client", "client-acme", "scheduler", "worker", "supervisor", "planner", "monitor", "gateway", "operator"]


class TestRefusals:
    @pytest.mark.parametrize("who", ROLES)
    async def test_a_role_is_refused_what_is_not_its_work(self, server: AclServer, who: str) -> None:
        admin = server.connect(server.url())
        await _lay_out(admin)
        before = await _all_keys(admin)
        redis = server.connect(server.url(f"tokenyard-{who}"))
        assert await redis.ping()
        run = redis.register_script("return redis.call(unpack(ARGV))")
        allowed: list[str] = []
        for command in [*FORBIDDEN[who], *NOBODY]:
            said = [await _said(redis.execute_command(*command))]
            if command[0] not in NOT_IN_SCRIPTS:
                said.append(await _said(run(keys=[K.prefix], args=command)))
            allowed += [f"{' '.join(command)}: {text}" for text in said if not REFUSED.search(text)]
        assert allowed == []
        assert await _all_keys(admin) == before

    async def test_a_wrong_password_and_no_password(self, server: AclServer) -> None:
        for url in (f"unix://{server.socket}", f"unix://tokenyard-client:wrong@{server.socket}"):
            with pytest.raises(rex.RedisError, match=r"(?i)auth|pass|NOPERM"):
                await server.connect(url).get("x")


#: As redis-py names it (a script of Redis 7.0 has words of its own).
REFUSED = re.compile("NoPermissionError|ACL failure in script|The user executing the script can't")


async def _said(answer: Awaitable[Any]) -> str:
    """What the server said: an error, or that it did as it was told."""
    try:
        return f"did it: {await answer!r}"
    except rex.ResponseError as error:
        return f"{type(error).__name__}: {error}"


#: Redis refuses these inside any script.
NOT_IN_SCRIPTS = {"MONITOR", "SHUTDOWN", "EVAL", "EVALSHA", "SUBSCRIBE", "SCRIPT", "FUNCTION", "DEBUG", "CONFIG"} | {
    "ACL",
    "CLIENT",
    "SAVE",
    "REPLICAOF",
    "MODULE",
}


async def _lay_out(admin: Any) -> None:
    """Keys of every kind, so that a refusal is none for want of a key."""
    for batch in (MINE, ACMES):
        await admin.hset(K.batch(batch), mapping={"state": "open", "total": 1})
        await admin.xadd(K.results(batch), {"job": f"{batch}.x"})
        await admin.hset(K.job(f"{batch}.x"), mapping={"state": "queued", "batch": batch})
        await admin.set(K.body(f"{batch}.x"), "prompt")
        await admin.zadd(K.batches, {batch: 1})
    for stream in (K.requests("normal"), K.requests("returned"), K.device("w"), K.events):
        await admin.xadd(stream, {"job": J})
    await admin.xgroup_create(K.requests("normal"), "scheduler", "0")
    await admin.xgroup_create(K.device("w"), "worker", "0")
    await admin.hset(K.worker("w"), mapping={"state": "ready", "incarnation": "i"})
    await admin.set("elsewhere", "x")


async def _all_keys(admin: Any) -> dict[bytes, bytes]:
    return {key: await admin.dump(key) for key in sorted(await admin.keys("*"))}
