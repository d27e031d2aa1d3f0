"""The users that ``tokenyard acl`` prints, on real servers: each can do its work, and nothing else."""

from __future__ import annotations

import asyncio
import re
import shlex
import shutil
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import Any

import pytest
import redis.exceptions as rex
from acl_server import AclServer, acl_server
from cli_process import ROOT
from cluster_fixtures import Cluster, ManualEngine, cuttable, eventually, exactly_once, instant_engine
from typer.testing import CliRunner

from broker.acl import Role, acl_line, setuser_command, user_of
from broker.client import Client, new_batch_id
from broker.errors import UsageError
from broker.keys import PoolKeys
from broker.pool_plan import PlannedWorker, PoolPlan
from broker.store.monitor import MonitorStore
from broker.store.plans import PlanStore
from broker.store.profiles import ProfileStore
from planner.tasks import PlannerProcess, PlannerTasks, ask
from tokenyard.cli import app
from tokenyard.cluster_snapshot import newest_batches, read_cluster
from tokenyard.embedded_server import find_binary

POOL = "p"
K = PoolKeys(POOL)


def _binary(name: str) -> Path:
    if name == "valkey":
        return find_binary()
    found = shutil.which("redis-server")
    if found is None:
        pytest.skip("no redis-server on this machine")
    return Path(found)


@pytest.fixture(params=["valkey", "redis"])
async def server(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[AclServer]:
    async with acl_server(_binary(request.param), tmp_path, POOL) as running:
        yield running


class RoleCluster(Cluster):
    """A cluster in which everyone connects as the user of its role; the test itself is the client."""

    def __init__(self, server: AclServer, **settings: Any) -> None:
        super().__init__(server.url_of(Role.CLIENT), POOL, **settings)
        self._server = server
        self.monitor = MonitorStore(server.connect(server.url_of(Role.MONITOR)), POOL)

    def start(self, name: str, engine: Any) -> Any:
        self.url = self._server.url_of(Role.WORKER)
        return super().start(name, engine)

    def schedule(self, owner: str = "first", **settings: Any) -> Any:
        self.url = self._server.url_of(Role.SCHEDULER)
        return super().schedule(owner, **settings)


@pytest.fixture
async def cluster(server: AclServer) -> AsyncIterator[RoleCluster]:
    running = RoleCluster(server, dead_after_s=1.5)
    yield running
    await running.close()


class TestWork:
    async def test_a_cluster_runs_with_a_user_for_each_role(self, cluster: RoleCluster) -> None:
        cluster.schedule()
        slow = ManualEngine()
        dying = await cluster.join("dying", slow)
        batch = await cluster.submit(6)
        await eventually(lambda: slow.running)
        await dying.kill()  # declared dead, its jobs come back
        other = await cluster.join("w", instant_engine(cluster.model))
        exactly_once(await cluster.collect(batch), 6)
        assert (await cluster.client.counts(batch)).complete
        await cluster.client.forget(batch)
        await other.stop()

    async def test_a_batch_is_cancelled_while_it_runs(self, cluster: RoleCluster) -> None:
        cluster.schedule()
        engine = ManualEngine()
        await cluster.join("w", engine)
        batch = await cluster.submit(30)
        await eventually(lambda: engine.running)
        await cluster.client.cancel(batch)
        results = await cluster.collect(batch)
        assert {r.error_code for r in results} == {"batch_cancelled"}

    async def test_a_monitor_sees_the_cluster_and_its_batches(self, cluster: RoleCluster, server: AclServer) -> None:
        cluster.schedule()
        engine = ManualEngine()
        await cluster.join("w", engine)
        batch = await cluster.submit(3)
        await eventually(lambda: len(engine.running) == 3)
        monitor = Client(server.connect(server.url_of(Role.MONITOR)), 60)
        assert await newest_batches(monitor, 10) == [batch]
        snapshot = await read_cluster(monitor, [batch])
        assert snapshot.batches[batch].total == 3
        assert snapshot.pools[0].workers["w"] is not None
        assert snapshot.pools[0].scheduler == "first"
        assert await cluster.monitor.last_event() != "0"

    async def test_a_planner_looks_plans_and_is_asked(self, server: AclServer) -> None:
        redis = server.connect(server.url_of(Role.PLANNER))
        plans = PlanStore(redis, POOL)
        plan = PoolPlan(1, 0.0, (PlannedWorker("w", "h", options=("--engine", "simulated")),))
        assert await plans.write(plan, await plans.read()) is not None
        assert (await plans.read()).plan is not None
        await plans.recent_mix(60)
        assert await plans.start_seconds() is None
        await plans.keep_note(b"{}")
        assert await plans.note() == b"{}"
        assert await ProfileStore(redis, POOL).all() == []
        assert await MonitorStore(redis, POOL).heartbeats() == {}

    async def test_the_planner_s_arq_runs(self, server: AclServer) -> None:
        redis = server.connect(server.url_of(Role.PLANNER))
        process = PlannerProcess(server.url_of(Role.PLANNER), POOL, PlannerTasks(Looks(), _measure), 3600)  # type: ignore[arg-type]
        running = asyncio.ensure_future(process.run())
        try:
            assert await ask(redis, POOL, "replan", timeout_s=30) == "looked"
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    async def test_a_supervisor_reads_the_plan_and_takes_its_turn(self, server: AclServer) -> None:
        planner = PlanStore(server.connect(server.url_of(Role.PLANNER)), POOL)
        await planner.write(PoolPlan(1, 0.0, ()), await planner.read())
        plans = PlanStore(server.connect(server.url_of(Role.SUPERVISOR)), POOL)
        assert (await plans.read()).plan is not None
        await plans.note_start("h", 3.0)
        assert await plans.start_seconds() == 3.0
        assert await plans.take_turn("h", 5)
        assert await plans.take_turn("h", 5)
        await plans.end_turn("h")
        await plans.mark_hosts(["h"])
        for role in (Role.PLANNER, Role.MONITOR):
            seen = PlanStore(server.connect(server.url_of(role)), POOL)
            assert await seen.without_supervisor(["h", "other"]) == ["other"]


class Looks:
    """A planner that looks and finds nothing."""

    pool = POOL

    async def look(self, *, at_once: bool) -> str:
        return "looked"


async def _measure(options: Any) -> str:
    return "measured"


#: A batch of the default tenant that the test knows, and one of the tenant acme.
MINE, ACMES = "batch_1", "acme:batch_2"
J = f"{MINE}.x"

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

ROLES = ["client", "client-acme", "scheduler", "worker", "supervisor", "planner", "monitor", "gateway"]


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


class TestTenants:
    async def test_a_client_of_a_tenant_submits_and_collects_its_own(self, server: AclServer) -> None:
        cluster = RoleCluster(server)
        cluster.schedule()
        await cluster.join("w", instant_engine(cluster.model))
        await cluster.collect(await cluster.submit(2))
        acme = cuttable(server.url_of(Role.CLIENT, "acme"))
        client = Client(acme, 60)
        batch = new_batch_id("acme")
        assert batch.startswith("acme:batch_")
        await client.submit(cluster.requests(4), batch)
        await client.seal(batch)
        results = [result async for chunk in client.results(batch) for result in chunk]
        exactly_once(results, 4)
        with pytest.raises(rex.NoPermissionError):
            await cluster.client.counts(batch)
        await acme.aclose()
        await cluster.close()


class TestPrinting:
    def invoke(self, *words: str) -> str:
        result = CliRunner().invoke(app, ["acl", *words])
        assert result.exit_code == 0, result.output
        return result.stdout

    def test_every_role_is_printed_and_off_without_passwords(self) -> None:
        lines = self.invoke("--pool", "p").splitlines()
        assert [line.split()[1] for line in lines] == [f"tokenyard-{role.value}" for role in Role]
        assert all(" off " in line and "#" not in line for line in lines)

    def test_passwords_are_made_once_kept_private_and_not_printed(self, tmp_path: Path) -> None:
        words = ["--pool", "p", "--role", "client", "--tenant", "acme", "--passwords", str(tmp_path / "new")]
        first = self.invoke(*words)
        kept = tmp_path / "new" / "tokenyard-client-acme"
        assert kept.stat().st_mode & 0o077 == 0
        assert kept.read_text().strip() not in first
        assert first == self.invoke(*words)
        assert first == acl_line(user_of(Role.CLIENT, ["p"], tenant="acme"), kept.read_text().strip()) + "\n"

    async def test_the_commands_for_redis_cli_make_the_same_users(self, server: AclServer) -> None:
        admin = server.connect(server.url())
        for role in Role:
            line = acl_line(user_of(role, ["p"]), "right")
            before = await admin.execute_command("ACL", "GETUSER", f"tokenyard-{role.value}")
            await admin.execute_command(*shlex.split(setuser_command(line)))
            assert await admin.execute_command("ACL", "GETUSER", f"tokenyard-{role.value}") == before

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["--pool", "a b"], "--pool 'a b'"),
            (["--pool", "*"], "--pool '*'"),
            (["--prefix", "x ~*"], "--prefix 'x ~*'"),
            (["--tenant", "batch_x"], "tenant 'batch_x'"),
            (["--tenant", "*"], "tenant '*'"),
        ],
    )
    def test_names_that_would_mean_more_in_a_rule(self, words: list[str], said: str) -> None:
        result = CliRunner().invoke(app, ["acl", *words])
        assert result.exit_code == 2
        assert said in result.stderr
        assert result.stdout == ""

    def test_the_commands_of_the_documentation(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        text = (ROOT / "docs" / "security.md").read_text()
        commands = re.findall(r"^tokenyard acl ([^>#\n]*)", text, re.MULTILINE)
        assert len(commands) >= 2
        for words in commands:
            assert self.invoke(*shlex.split(words))
        for name in re.findall(r"secrets/(tokenyard-[a-z-]+)", text):
            assert (tmp_path / "secrets" / name).is_file()

    def test_only_a_client_is_of_a_tenant(self) -> None:
        with pytest.raises(UsageError, match="leave --tenant to the client"):
            user_of(Role.WORKER, ["p"], tenant="acme")
